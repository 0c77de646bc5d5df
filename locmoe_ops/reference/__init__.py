"""The MoE layer in plain NumPy loops over N simulated ranks: the yardstick of the compiled layers.

Written for reading, not for speed. It shares no code with the layers it judges; of the rest of `locmoe_ops` it knows
only the topology, which says what runs where.
"""
