"""Networks for tissue: as large as published, used as their cards say, built without the hub, fetched from one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save, save_file

import histoweave as hw
from histoweave.models import ImageEncoder
from histoweave.models.image_encoder._backbone import load_backbone
from histoweave.models.image_encoder._published import BIOPTIMUS, PUBLISHED, Published, pool_tokens, published

# parameters that authors give, most rounded, and the length of the vectors that their cards end with
SIZES = {
    "uni": (303e6, 1024), "uni2-h": (681e6, 1536), "phikon": (86e6, 768), "h-optimus-0": (1.135e9, 1536),
    "h-optimus-1": (1.135e9, 1536), "h0-mini": (86e6, 1536), "virchow": (631e6, 2560), "virchow2": (631e6, 2560),
    "prov-gigapath": (1134953984, 1536),
}  # fmt: skip
SMALL = Published(
    "somebody/small",
    "test_vit",
    {"reg_tokens": 4, "global_pool": ""},
    gated=True,
    colours=BIOPTIMUS,
    with_patches=True,
)


@pytest.fixture
def small(monkeypatch):
    """A small network takes the place of a large one: as its card would have it, and its file."""
    monkeypatch.setitem(PUBLISHED, "h0-mini", SMALL)
    torch.manual_seed(0)
    return SMALL.create(pretrained=False).eval()


@pytest.mark.parametrize("name", PUBLISHED)
def test_size_and_features_are_the_published_ones(name):
    n, dim = SIZES[name]
    with torch.device("meta"):
        network = PUBLISHED[name].create(pretrained=False)
    assert sum(weight.numel() for weight in network.parameters()) == pytest.approx(n, rel=0.01)
    assert network.num_features * (1 + PUBLISHED[name].with_patches) == dim
    tokens = (224 // network.patch_embed.patch_size[0]) ** 2 + network.num_prefix_tokens
    assert network.pos_embed.shape[1] in (tokens, tokens - network.num_prefix_tokens)


def test_names():
    for name in ("uni", "UNI", "MahmoodLab/UNI", "hf-hub:MahmoodLab/UNI", "hf_hub:mahmoodlab/uni"):
        assert published(name) is PUBLISHED["uni"]
    assert published("hf-hub:owkin/phikon") is PUBLISHED["phikon"]
    assert published("resnet18") is None
    assert published("hf-hub:somebody/uni") is None


def test_tokens_become_features():
    tokens = torch.arange(2 * 7 * 3.0).reshape(2, 7, 3)
    first, patches = tokens[:, 0], torch.stack([t[5:].sum(0) / 2 for t in tokens])
    assert torch.equal(pool_tokens(tokens, 5, with_patches=False), first)
    assert torch.equal(pool_tokens(tokens, 5, with_patches=True), torch.cat([first, patches], dim=1))
    assert torch.equal(pool_tokens(tokens, 0, with_patches=False), tokens.mean(dim=1))


@torch.inference_mode()
@pytest.mark.parametrize("px", [224, 48])
def test_used_as_the_card_says(small, tmp_path, px):
    save_file(small.state_dict(), tmp_path / "small.safetensors")
    crops = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (3, px, px, 3), dtype=np.uint8))
    mean, sd = (torch.tensor(values).view(3, 1, 1) for values in BIOPTIMUS)
    pictures = F.interpolate(crops.permute(0, 3, 1, 2) / 255, size=(224, 224), mode="bilinear", antialias=True)
    tokens = small((pictures - mean) / sd)
    assert tokens.shape == (3, 14**2 + 5, 64)
    backbone = load_backbone("hf-hub:somebody/small", tmp_path / "small.safetensors").eval()
    expected = torch.cat([tokens[:, 0], tokens[:, 5:].mean(dim=1)], dim=1)
    torch.testing.assert_close(backbone(crops), expected, rtol=1e-4, atol=1e-5)


def test_a_saved_encoder_needs_no_hub(small, tmp_path, monkeypatch):
    save_file(small.state_dict(), tmp_path / "small.safetensors")
    adata = hw.datasets.simulate_section(n_rows=6, n_cols=6)
    hw.pp.crops(adata, out_px=32)
    encoder = ImageEncoder(
        "pretrained", backbone="h0-mini", weights=tmp_path / "small.safetensors", n_components=5, precision="float32"
    )
    found = encoder.fit(adata).embed(adata)
    encoder.save(tmp_path / "encoder")
    (tmp_path / "small.safetensors").unlink()
    monkeypatch.setattr(timm.models._hub, "hf_hub_download", None)
    loaded = ImageEncoder.load(tmp_path / "encoder")
    loaded.precision = "float32"
    np.testing.assert_allclose(loaded.embed(adata), found, rtol=1e-5, atol=1e-6)


class Hub(BaseHTTPRequestHandler):
    """As much of a hub as a download needs: one repository with weights, one that is gated."""

    files: dict[str, bytes]

    def do_GET(self):
        found = self.files.get(self.path)
        gated = self.path.startswith("/1aurent")
        self.send_response(403 if gated else 200 if found else 404)
        if found is None:
            self.send_header("X-Error-Code", "GatedRepo" if gated else "EntryNotFound")
            found = b""
        self.send_header("Content-Length", str(len(found)))
        self.send_header("ETag", '"of-the-weights"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(found)

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


ASK = """
import json
from histoweave.models.image_encoder import _published
from histoweave.models.image_encoder._backbone import load_backbone
_published.PUBLISHED["h0-mini"] = _published.Published("somebody/small", "test_vit", {"reg_tokens": 4})
weights = load_backbone("h0-mini", None).network.state_dict()
try:
    load_backbone("phikon", None)
except RuntimeError as error:
    print(json.dumps([str(error), float(sum(w.double().sum() for w in weights.values()))]))
"""


def test_weights_come_from_the_hub_and_a_gated_one_is_told(tmp_path):
    torch.manual_seed(0)
    state = Published("", "test_vit", {"reg_tokens": 4}).create(pretrained=False).state_dict()
    Hub.files = {"/somebody/small/resolve/main/model.safetensors": save(state)}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    try:
        asked = subprocess.run(
            [sys.executable, "-c", ASK], env=os.environ | here, capture_output=True, text=True, check=True, timeout=300
        )
    finally:
        server.shutdown()
        server.server_close()
    message, total = json.loads(asked.stdout.splitlines()[-1])
    assert total == pytest.approx(float(sum(w.double().sum() for w in state.values())), rel=1e-9)
    assert "weights of 'phikon' cannot be loaded (GatedRepoError" in message
    assert "accept the terms on the hub" in message
