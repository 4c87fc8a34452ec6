"""The predecessor's performance report, measured again on a temporary system.

Each read of the predecessor's tables is done as the predecessor did it ("before") and as the services do it ("after"),
in alternation. Decision 0019 says what exactly is compared. `page.py` writes the report as HTML and Markdown.
"""
