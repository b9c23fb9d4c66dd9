from ._public import dlpfc as dlpfc
from ._public import her2st as her2st
from ._public import mob_st as mob_st
from ._public import pathmnist as pathmnist
from ._public import visium_breast as visium_breast
from ._registry import available as available
from ._simulate import simulate_section as simulate_section
from ._simulate import simulate_sections as simulate_sections
