"""How many devices a market of models needs, by what shares them."""
