"""Chat templates: conversations to prompts, by a program that the model's file brings along."""

from __future__ import annotations

from server.chat_template.limits import Limits
from server.chat_template.template import FALLBACK_TEMPLATE, ChatTemplate, TemplateError

__all__ = ["FALLBACK_TEMPLATE", "ChatTemplate", "Limits", "TemplateError"]
