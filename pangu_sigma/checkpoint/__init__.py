"""Checkpoints on disk: what they look like, writing and reading them. Only `state`, and what uses it
(`header`, `resume`), knows MindSpore.

`step_N/` holds safetensors shards and `manifest.json` (see `format`). Every tensor is stored under the name of its
parameter and, if it is an expert's, the expert's global id (see `names`); which rank held it, and what its
tensor-parallel group cut it into, a reader need not know (see `reader`). A checkpoint is whole or absent (see
`folders`), and is written while training continues (see `writer`).
"""
