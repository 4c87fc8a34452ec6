"""Run the stats service: `python -m services.stats`."""

from libs.server import main
from services.namespaces import NAMESPACES
from services.stats.service import build

main("stats", 50053, build, NAMESPACES, read_only=True)
