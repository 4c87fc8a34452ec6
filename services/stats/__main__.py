"""Run the stats service: `python -m services.stats`."""

from libs.server import main
from services.stats.service import build

main("stats", 50053, build, read_only=True)
