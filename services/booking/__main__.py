"""Run the booking service: `python -m services.booking`."""

from libs.server import main
from services.booking.service import build

main("booking", 50051, build)
