"""Every family that llama.cpp runs and edgepack has or shall have, and every variant of its
configuration: `VARIANTS` by ``family/variant``, `save` for the tiny random model of one."""

from tests.support.families.dense import FEW_FACTS
from tests.support.families.fused import FUSED
from tests.support.families.gemmas import GEMMAS
from tests.support.families.hybrids import HYBRIDS
from tests.support.families.llamas import LLAMAS
from tests.support.families.models import logits, save, tokens
from tests.support.families.variant import LENGTH, Variant

VARIANTS = {v.key: v for v in [*LLAMAS, *FEW_FACTS, *FUSED, *GEMMAS, *HYBRIDS]}

__all__ = ["LENGTH", "VARIANTS", "Variant", "logits", "save", "tokens"]
