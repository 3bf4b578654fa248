"""Adapters: their types, files, PEFT injection, stacking and merging.

One adapter is a function from a base weight to a change of it, `delta(W) = trained(W) - W`.
Everything here follows one rule for any number of adapters and any strengths:

    W_effective = W + sum_i  strength_i * delta_i(W)

Only this package imports peft.
"""

import logging

# peft imports bitsandbytes where it is installed, which warns of a kernel that we do not use
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
