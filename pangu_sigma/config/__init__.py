"""Configuration: the keys (`schema`), reading and writing them (`load`), and checks across keys (`validate`)."""
