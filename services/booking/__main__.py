"""Run the booking service: `python -m services.booking`."""

from libs.server import main
from services.booking.service import build
from services.namespaces import NAMESPACES

main("booking", 50051, build, NAMESPACES)
