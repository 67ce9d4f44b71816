"""The chat template: a file's or the model's own, what it reads, and messages as its text."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import jinja2.sandbox

from cluster.errors import ConfigError, InvalidRequest
from cluster.model.model_path import expand

MAX_TEMPLATE_BYTES = 1 << 20
THINKING_SWITCHES = ("enable_thinking", "thinking")
"""Variables by which templates take whether to think. Qwen, GLM and Gemma have the first, DeepSeek and Granite the
second."""
MAX_REASON_CHARS = 300

_GENERATION_TAG = re.compile(r"{%-?\s*(end)?generation\s*-?%}")
"""What transformers adds to Jinja, and uses in training alone."""


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """Owns how chat messages become the prompt's text.

    ``tokenizer`` is transformers', which renders; ``file_text`` is the template to use in place of its own.
    """

    tokenizer: Any
    file_text: str | None = None

    def text(self, tools: list[Any] | None = None) -> str | None:
        """The template that is used with these tools; None where the model has none."""
        if self.file_text is not None or not self.tokenizer.chat_template:
            return self.file_text
        text: str = self.tokenizer.get_chat_template(None, tools)
        return text

    def reads(self, name: str, tools: list[Any] | None = None) -> bool:
        """Whether the template reads a variable."""
        return name in variables_of(self.text(tools) or "")

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[Any] | None,
        variables: dict[str, Any],
        add_generation_prompt: bool,
        continue_final_message: bool,
    ) -> str:
        """The messages as text.

        Raises:
            InvalidRequest: there is no template, it refuses the messages, or a variable's name is taken.
        """
        text = self.text(tools)
        if text is None:
            raise InvalidRequest(
                "the model has no chat template; send a prompt, or set model.chat_template in the spec",
                field="messages",
            )
        check_variables(variables)
        if "developer" not in text:
            messages = developer_as_system(messages)
        try:
            rendered: str = self.tokenizer.apply_chat_template(
                messages,
                tools=tools,
                chat_template=self.file_text,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **variables,
            )
        except Exception as error:  # templates are code of the model's author and raise anything
            # transformers puts the whole chat into some of its messages.
            reason = str(error)[:MAX_REASON_CHARS]
            raise InvalidRequest(f"the chat template refused the messages: {reason}", field="messages") from error
        return rendered


def read_template_file(path: str | None, folder: Path) -> str | None:
    """The text of the spec's ``model.chat_template``; None where there is none.

    Args:
        path: As the spec has it.
        folder: The model's, where relative paths begin.

    Raises:
        ConfigError: it cannot be read, or is no Jinja template.
    """
    if path is None:
        return None
    file = folder / expand(path)
    name = f"model.chat_template={path}"
    try:
        if file.stat().st_size > MAX_TEMPLATE_BYTES:
            raise ConfigError(f"{name}: {file} is over {MAX_TEMPLATE_BYTES} bytes; expected a Jinja chat template")
        text = file.read_text()
    except OSError as error:
        raise ConfigError(f"{name}: cannot read {file}: {error.strerror}; every gateway needs the file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: {file} is not UTF-8; expected a Jinja chat template") from error
    try:
        _parsed(text)
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(f"{name}: line {error.lineno} of {file}: {error.message}") from error
    if "messages" not in variables_of(text):
        raise ConfigError(f"{name}: {file} does not read `messages`; expected a Jinja chat template")
    return text


@lru_cache(maxsize=16)
def variables_of(text: str) -> frozenset[str]:
    """Names that a template reads and does not set itself; none where it cannot be parsed.

    Example:
        >>> sorted(variables_of("{{ messages[0].content }}{% if thinking %}<think>{% endif %}"))
        ['messages', 'thinking']
    """
    try:
        return frozenset(jinja2.meta.find_undeclared_variables(_parsed(text)))
    except jinja2.TemplateSyntaxError:  # an extension of Jinja that is not known here; transformers may know it
        return frozenset()


def check_variables(variables: dict[str, Any]) -> None:
    """Check that no variable goes by a name that rendering itself uses.

    Raises:
        InvalidRequest: one does.
    """
    taken = next((name for name in variables if name in _taken_names()), None)
    if taken is not None:
        name = f"chat_template_kwargs.{taken}"
        raise InvalidRequest(f"{name}: may not be set here; it is a field of the request or fixed", field=name)


def developer_as_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages for a template that knows no developer, as vLLM has it: one system message, and at the front.

    Example:
        >>> developer_as_system([{"role": "user", "content": "a"}, {"role": "developer", "content": "b"}])
        [{'role': 'system', 'content': 'b'}, {'role': 'user', 'content': 'a'}]
    """
    if all(message["role"] != "developer" for message in messages):
        return messages
    system = [message for message in messages if message["role"] in ("developer", "system")]
    others = [message for message in messages if message["role"] not in ("developer", "system")]
    content = "\n\n".join(message["content"] for message in system if message["content"])
    return [{"role": "system", "content": content}, *others]


def _parsed(text: str) -> jinja2.nodes.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    return environment.parse(_GENERATION_TAG.sub("", text))


@lru_cache(maxsize=1)
def _taken_names() -> frozenset[str]:
    """Arguments of transformers' rendering, other than those that templates read from callers."""
    from transformers import PreTrainedTokenizerBase
    from transformers.utils.chat_template_utils import render_jinja_template

    names = {
        name
        for function in (PreTrainedTokenizerBase.apply_chat_template, render_jinja_template)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }
    return frozenset(names | {"messages"}) - {"documents"}
