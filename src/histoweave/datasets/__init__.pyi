from ._public import dlpfc, her2st, mob_st, pathmnist, visium_breast
from ._registry import available
from ._simulate import simulate_section, simulate_sections
