"""What holds for every test: none judges time, which is the benchmarks' business."""

from hypothesis import settings

settings.register_profile("scanbench", deadline=None)
settings.load_profile("scanbench")
