"""OLMo 3: an OLMo 2 with windows in three of four blocks, which alone keep their rotary positions
when the context is stretched."""

from dataclasses import replace

from edgepack.architectures.olmo2 import PLUGIN as OLMO2

PLUGIN = replace(OLMO2, name="olmo3", class_name="Olmo3ForCausalLM", mixed=True, sliding_theta=0.0)
