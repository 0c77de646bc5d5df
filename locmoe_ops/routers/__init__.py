"""Level-2 routers: which expert of its group a token goes to."""
