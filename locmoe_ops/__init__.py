"""Building blocks of locality-aware mixture-of-experts layers for MindSpore, usable without the PanGu-Sigma model."""
