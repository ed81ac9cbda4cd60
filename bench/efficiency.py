"""What each means to make much of few votes brings: the same 100 thumbs, with one of them left out at a time.

python -m bench.efficiency --json FILE --seed 1 --seed 2 --seed 3    some five minutes a run on two cores
"""

from __future__ import annotations

from bench import variants
from bench.variants import Study

STUDY = Study(
    "efficiency",
    "What each means to make much of few votes brings.",
    {
        "as it comes": (),
        "votes alone": ("learner.ppo.vote_weight=1", "learner.ppo.fresh_iterations=0"),
        "no fresh rollouts": ("learner.ppo.fresh_iterations=0",),
        "rated answers by the model alone": ("learner.ppo.vote_weight=0",),
        "all fresh answers, not the best and the worst": ("learner.ppo.learned_rollouts=96",),
        "groups of eight answers (grpo)": ("learner.algorithm=grpo",),
        "adapter on all layers": ("learner.lora.layers=1",),
        "no warm-up": ("learner.ppo.warmup_updates=0",),
        "no caution": ("learner.reward_model.caution=0",),
    },
)

if __name__ == "__main__":
    variants.main(STUDY)
