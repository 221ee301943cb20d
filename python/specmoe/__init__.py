"""specmoe: train, generate from, and offload Mixture-of-Experts transformers built on `moe_kernels`.

Importing this package is free of side effects; import `specmoe.transformer` to register the model with transformers'
Auto classes, and `specmoe.training` to train one.
"""

from __future__ import annotations
