"""`pangu-sigma plan`: what a configuration costs on a cluster, before anything runs. Nothing here needs MindSpore.

`job`: a configuration on so many ranks. `parameters`, `slots`: sizes by closed form. `exchanges`: every collective of a
    step; `traffic`:
its bytes. `memory`, `predict`: what a rank holds, how long a step takes on the machines of `hardware`, of which
    `cluster` takes so many.
`plan`: all of it for one configuration; `report`: as text. `fits`: changes that make it fit. `sweep`: many plans beside
each other.
"""
