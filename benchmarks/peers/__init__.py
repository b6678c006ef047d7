"""One small adapter per sampler, a class `Adapter` with `run(seed)` and `summary()`."""

ADAPTERS = {
    "pushforward": "pushforward_nuts",
    "blackjax": "blackjax_nuts",
    "numpyro-sequential": "numpyro_nuts",
    "numpyro-vectorized": "numpyro_nuts",
    "numpyro-parallel": "numpyro_nuts",
    "nutpie-pymc": "nutpie_pymc",
    "nutpie-jax": "nutpie_jax",
}
JAX_PEERS = ("blackjax", "numpyro-sequential", "numpyro-vectorized", "numpyro-parallel")
