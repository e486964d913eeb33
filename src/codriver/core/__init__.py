"""The contracts every room shares: messages, engines, plans, deadlines, configuration, errors.

Only the standard library and msgspec may be imported here.
"""
