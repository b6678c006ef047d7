"""nutpie on a log density in JAX (`compiled_pyfunc.from_pyfunc`): each gradient is a call of Python."""

import jax
import numpy as np
import nutpie
from numpyro.infer.util import initialize_model


class Adapter:
    def __init__(self, reference, name, chains, warmup, draws):
        del name
        info = initialize_model(
            jax.random.key(0), reference.model, model_kwargs=reference.kwargs, dynamic_args=False, validate_grad=False
        )
        flat, unflatten = jax.flatten_util.ravel_pytree(info.param_info.z)
        value_and_grad = jax.jit(jax.value_and_grad(lambda u: -info.potential_fn(unflatten(u))))
        constrain = jax.jit(lambda u: info.postprocess_fn(unflatten(u)))
        like = jax.eval_shape(constrain, flat)

        def log_density(u):
            value, gradient = value_and_grad(u)
            return float(value), np.asarray(gradient, np.float64)

        def expand(u):
            return {name: np.asarray(value) for name, value in constrain(u).items()}

        self.compiled = nutpie.compiled_pyfunc.from_pyfunc(
            flat.size,
            lambda: log_density,
            lambda *_: expand,
            [np.dtype(np.float64)] * len(like),
            [x.shape for x in like.values()],
            list(like),
            make_initial_point_fn=lambda seed: np.random.default_rng(seed).uniform(-2, 2, flat.size),
        )
        self.options = {"chains": chains, "tune": warmup, "draws": draws, "progress_bar": False, "save_warmup": False}

    def run(self, seed):
        self.trace = nutpie.sample(self.compiled, seed=seed, **self.options)
        group = self.trace["posterior"].to_dataset()
        return {str(name): group[name].values for name in group.data_vars}, None

    def summary(self):
        import arviz_stats

        return str(arviz_stats.summary(self.trace))
