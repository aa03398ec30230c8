"""The demo: three models share a pool that holds one of them."""
