"""The vocabulary of the sample data: regions, names, services and messages."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Region:
    """The region of a salon.

    Units:  message_cost_micros in millionths of currency_code, for one message to a customer; mobile_prefix takes
            8 more digits.
    """

    region_code: str
    language_code: str
    time_zone: str
    currency_code: str
    message_cost_micros: int
    mobile_prefix: str
    given_names: tuple[str, ...]
    customer_says: tuple[str, ...]
    salon_says: tuple[str, ...]


_GERMAN = (
    (
        "Hallo! Habt ihr am Samstag noch etwas frei?",
        "Könnte ich meinen Termin um eine Stunde verschieben?",
        "Was kostet Strähnen mit Föhnen?",
        "Super, danke, bis dann!",
        "Ich verspäte mich leider um 10 Minuten.",
    ),
    (
        "Gerne! Am Samstag ist um 10:30 Uhr noch ein Platz frei.",
        "Ihr Termin ist bestätigt. Wir freuen uns auf Sie!",
        "Kein Problem, wir haben den Termin verschoben.",
        "Erinnerung: Ihr Termin ist morgen. Bitte antworten Sie mit JA.",
        "Strähnen mit Föhnen kosten 85 Euro.",
    ),
)
_SPANISH = (
    (
        "¡Hola! ¿Tienen hueco mañana por la tarde?",
        "Quería cambiar mi cita, por favor.",
        "¿Cuánto cuesta el tinte?",
        "Perfecto, ¡muchas gracias!",
        "¿Atienden los domingos?",
    ),
    (
        "¡Claro! Mañana tenemos libre a las 17:00.",
        "Su cita está confirmada. ¡Le esperamos!",
        "Listo, hemos cambiado su cita.",
        "Le recordamos su cita de mañana. Responda SÍ para confirmar.",
        "Abrimos de lunes a sábado.",
    ),
)
_PORTUGUESE = (
    (
        "Oi! Tem horário para sexta?",
        "Preciso remarcar, pode ser?",
        "Quanto fica corte e escova?",
        "Ótimo, obrigada!",
        "Estou chegando 😊",
    ),
    (
        "Oi! Sexta temos às 14h. Pode ser?",
        "Seu horário está confirmado!",
        "Remarcado! Qualquer coisa é só chamar.",
        "Lembrete: seu horário é amanhã. Responda SIM para confirmar.",
        "Corte e escova saem por R$ 120.",
    ),
)
_ENGLISH = (
    (
        "Hi, do you have anything free this afternoon?",
        "Can I move my appointment to next week?",
        "How much is a cut and colour?",
        "Perfect, see you then!",
        "Running 5 minutes late, sorry.",
    ),
    (
        "Hello! We have 3:30 pm free today. Shall I book it?",
        "Your appointment is confirmed.",
        "Done, we have moved it for you.",
        "Reminder: your appointment is tomorrow. Reply YES to confirm.",
        "No worries, see you soon!",
    ),
)

REGIONS = (
    Region("DE", "de", "Europe/Berlin", "EUR", 46_500, "+49151", ("Anna", "Lukas", "Mia", "Jonas", "Käthe"), *_GERMAN),
    Region(
        "BR",
        "pt",
        "America/Sao_Paulo",
        "BRL",
        42_000,
        "+55119",
        ("Beatriz", "João", "Luíza", "Rafael", "Iara"),
        *_PORTUGUESE,
    ),
    Region(
        "ES", "es", "Europe/Madrid", "EUR", 16_600, "+346", ("Lucía", "Hugo", "Sofía", "Íñigo", "Carmen"), *_SPANISH
    ),
    Region(
        "IN", "en", "Asia/Kolkata", "INR", 115_000, "+9198", ("Aarav", "Diya", "Ishaan", "Priya", "Meera"), *_ENGLISH
    ),
    Region(
        "MX",
        "es",
        "America/Mexico_City",
        "MXN",
        148_000,
        "+5255",
        ("Ximena", "Diego", "Valeria", "Emilio", "Renata"),
        *_SPANISH,
    ),
    Region(
        "GB", "en", "Europe/London", "GBP", 15_900, "+4477", ("Olivia", "Noah", "Amelia", "Arthur", "Siân"), *_ENGLISH
    ),
)

SURNAMES = ("Weber", "Silva", "García", "Sharma", "Hernández", "Taylor", "Costa", "Patel", "O'Brien", "Núñez", "Vogt")
SALON_NAMES = (
    "Salon Aurora",
    "Studio Nova",
    "Casa Bella",
    "The Parlour",
    "Maison Lila",
    "Atelier Iris",
    "Barber & Co.",
)

# Tags of a conversation; most have none.
TAGS: tuple[list[str], ...] = ([], [], [], ["vip"], [], ["new customer"], [], ["complaint", "vip"], [], [])

# Name, and duration in minutes: none is longer than the 90 of a slot.
SERVICES = (
    ("Haircut", 45),
    ("Cut and blow-dry", 60),
    ("Colour", 90),
    ("Beard trim", 30),
    ("Manicure", 45),
    ("Balayage", 90),
)

# Name, and USD micros for a prompt token and for a completion token.
AI_MODELS = (("gpt-4o-mini", 0.15, 0.60), ("claude-3-5-haiku", 0.80, 4.00), ("gpt-4o", 2.50, 10.00))
