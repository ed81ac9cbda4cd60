"""The four algorithms on the same votes: what one cycle of each makes of them.

A prompt is asked three times, so that many have answers that were voted up and others that were voted down: DPO lives
on these. What the gate refuses does not go live, and its row shows the base.

    python -m bench.algorithms --json FILE    four runs of some eight minutes each on two cores
"""

from __future__ import annotations

from bench import variants
from bench.variants import Study

STUDY = Study(
    "algorithms",
    "The four algorithms on the same votes.",
    {name: (f"learner.algorithm={name}",) for name in ("ppo", "grpo", "dpo", "kto")},
    ratings=288,
    quick_ratings=96,
)

if __name__ == "__main__":
    variants.main(STUDY)
