"""The commands of `fastclf.cli`, a module each: ``add_arguments(parser)`` and ``run(arguments)``."""
