"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real research data beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"real research data is not at {SHARED}")
    return SHARED
