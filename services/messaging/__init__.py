"""The messaging service: owns conversations, their WhatsApp messages, and what the AI said in them.

It promises that a message is recorded once however often it comes, that its status only moves forward in whatever order
the statuses come, and that a read shows every write that was acknowledged before it.
"""
