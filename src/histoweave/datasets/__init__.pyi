from ._registry import available, dlpfc, her2st, mob_st, pathmnist, visium_breast
from ._simulate import simulate_section, simulate_sections
