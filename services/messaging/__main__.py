"""Run the messaging service: `python -m services.messaging`."""

from libs.server import main
from services.messaging.service import build
from services.namespaces import NAMESPACES

main("messaging", 50052, build, NAMESPACES, secrets=["WHATSAPP_APP_SECRET"])
