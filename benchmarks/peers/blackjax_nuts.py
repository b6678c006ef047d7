"""BlackJAX called directly, as its documentation does: window adaptation and NUTS, chains by `vmap`.

All of a run is one jitted function of the key, which its documentation does not even ask for: a second run compiles
nothing. The log density is NumPyro's, of the same model.
"""

import blackjax
import jax
import numpy as np
import numpyro.diagnostics
from numpyro.infer.util import initialize_model


class Adapter:
    def __init__(self, reference, name, chains, warmup, draws):
        del name
        info = initialize_model(
            jax.random.key(0), reference.model, model_kwargs=reference.kwargs, dynamic_args=False, validate_grad=False
        )
        example, constrain = info.param_info.z, info.postprocess_fn

        def log_density(z):
            return -info.potential_fn(z)

        def one_chain(key):
            start_key, warmup_key, sample_key = jax.random.split(key, 3)
            leaves, tree = jax.tree.flatten(example)
            keys = jax.random.split(start_key, len(leaves))
            start = [jax.random.uniform(k, x.shape, minval=-2.0, maxval=2.0) for k, x in zip(keys, leaves)]
            adaptation = blackjax.window_adaptation(blackjax.nuts, log_density)
            (state, parameters), learned = adaptation.run(warmup_key, jax.tree.unflatten(tree, start), warmup)
            step = blackjax.nuts(log_density, **parameters).step

            def body(state, key):
                state, info = step(key, state)
                return state, (state.position, info.num_integration_steps)

            _, (positions, steps) = jax.lax.scan(body, state, jax.random.split(sample_key, draws))
            return jax.vmap(constrain)(positions), steps.sum() + learned.info.num_integration_steps.sum()

        self.sample = jax.jit(lambda key: jax.vmap(one_chain)(jax.random.split(key, chains)))

    def run(self, seed):
        values, evaluations = self.sample(jax.random.key(seed))
        self.draws = {name: np.asarray(value) for name, value in values.items()}
        return self.draws, int(np.asarray(evaluations).sum())

    def summary(self):
        numpyro.diagnostics.print_summary(self.draws)  # the leanest there is: no ArviZ, no pandas
