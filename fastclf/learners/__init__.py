"""What users call: learners, and what they are made of.

`learner` has the lesson's calls for any model; `conv_learner` adds a pretrained body whose activations are cached,
`head_learner` is for activations that came from elsewhere. Each further module adds the calls of one subject, and
`stage` and `cached_stage` say what trains now, and on what.
"""
