"""Expert capacity: how many slots an expert keeps for the tokens of one rank.

`factor`: a multiple of the evenly spread load. `bound`: LocMoE's minimum in tokens. `delta`: the cosine that the bound
needs, measured on a batch. `policy`: from the bound to slots, and slots that change while training runs.
"""
