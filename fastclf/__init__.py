"""From a folder of pictures to a classifier, the way of fast.ai's first lesson, natively fast."""
