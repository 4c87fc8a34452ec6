"""The messaging service: owns conversations, their WhatsApp messages and their AI messages.

A message is recorded once, however often it arrives. Its status only moves forward, in any order of arrival of the
status events. A read shows every write that was acknowledged before it.
"""
