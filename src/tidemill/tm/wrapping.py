"""Functions with a span around every call: plain ones, coroutines, generators and asynchronous generators."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import AsyncGenerator, Callable, Generator
from typing import TYPE_CHECKING, Any, TypeVar, cast

from tidemill.tm.payloads import arguments_of, collected, enough
from tidemill.tm.spans import Handle, close

if TYPE_CHECKING:
    from opentelemetry.context import Context

    from tidemill.tm.spans import Step

_Function = TypeVar("_Function", bound=Callable[..., Any])


def wrapped(step: Step, function: _Function) -> _Function:
    """The function with a span around every call, of the same kind as it is.

    Args:
        step: what span.
        function: whose name the span has where the step has none.
    """
    name = step.name or getattr(function, "__qualname__", type(function).__qualname__).replace("<locals>.", "")

    def begin(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Handle, Context]:
        handle, inner = step.open(name)
        if step.capture in (True, "input") and handle.otel.is_recording():
            handle.input(arguments_of(function, args, kwargs))
        return handle, inner

    if inspect.isasyncgenfunction(function):

        @functools.wraps(function)
        def stream_async(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
            return _drive_async(begin, function, args, kwargs)

        return cast("_Function", stream_async)
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def stream(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
            return _drive(begin, function, args, kwargs)

        return cast("_Function", stream)
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def call_async(*args: Any, **kwargs: Any) -> Any:
            with _Call(begin(args, kwargs)) as handle:
                result = await function(*args, **kwargs)
                handle.output(result)
                return result

        return cast("_Function", call_async)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with _Call(begin(args, kwargs)) as handle:
            result = function(*args, **kwargs)
            handle.output(result)
            return result

    return cast("_Function", call)


class _Call:
    """The span is the current one within the block, and ends with it."""

    def __init__(self, begun: tuple[Handle, Context]) -> None:
        self._handle, self._inner = begun

    def __enter__(self) -> Handle:
        from opentelemetry import context

        self._token = context.attach(self._inner)
        return self._handle

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        from opentelemetry import context

        context.detach(self._token)
        close(self._handle, error)


class _Streamed:
    """A generator's span: the current one while the generator runs, and not while its caller does."""

    def __init__(self, begun: tuple[Handle, Context]) -> None:
        self._handle, self._inner = begun
        self._begun_s = time.monotonic()
        self._items: list[Any] = []
        self._given = 0

    def __enter__(self) -> None:
        from opentelemetry import context

        self._token = context.attach(self._inner)

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        from opentelemetry import context

        context.detach(self._token)

    def gave(self, item: Any) -> Any:
        """Note an item on its way to the caller."""
        if not self._given:
            waited_s = time.monotonic() - self._begun_s
            self._handle.otel.set_attribute("gen_ai.response.time_to_first_chunk", waited_s)
        self._given += 1
        if self._handle.capture in (True, "output") and not enough(self._items):
            self._items.append(item)
        return item

    def end(self, error: BaseException | None) -> None:
        """The generator has ended, by itself or by an exception; one that is closed early was left by its caller."""
        if self._items:
            self._handle.output(collected(self._items))
        close(self._handle, error)


def _drive(
    begin: Callable[[tuple[Any, ...], dict[str, Any]], tuple[Handle, Context]],
    function: Callable[..., Generator[Any, Any, Any]],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Generator[Any, Any, Any]:
    streamed = _Streamed(begin(args, kwargs))
    error: BaseException | None = None
    try:
        with streamed:
            inner = function(*args, **kwargs)
        step: Callable[[], Any] = functools.partial(next, inner)
        while True:
            try:
                with streamed:
                    item = step()
            except StopIteration as ended:
                return ended.value
            try:
                sent = yield streamed.gave(item)
                step = functools.partial(inner.send, sent)
            except GeneratorExit as left:
                error = left
                with streamed:
                    inner.close()
                raise
            except BaseException as thrown:  # noqa: BLE001 - whatever the caller throws is the generator's to take
                step = functools.partial(inner.throw, thrown)
    except BaseException as raised:
        error = raised
        raise
    finally:
        streamed.end(error)


async def _drive_async(
    begin: Callable[[tuple[Any, ...], dict[str, Any]], tuple[Handle, Context]],
    function: Callable[..., AsyncGenerator[Any, Any]],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> AsyncGenerator[Any, Any]:
    streamed = _Streamed(begin(args, kwargs))
    error: BaseException | None = None
    try:
        with streamed:
            inner = function(*args, **kwargs)
        step: Callable[[], Any] = functools.partial(inner.asend, None)
        while True:
            try:
                with streamed:
                    item = await step()
            except StopAsyncIteration:
                return
            try:
                sent = yield streamed.gave(item)
                step = functools.partial(inner.asend, sent)
            except GeneratorExit as left:
                error = left
                with streamed:
                    await inner.aclose()
                raise
            except BaseException as thrown:  # noqa: BLE001 - whatever the caller throws is the generator's to take
                step = functools.partial(inner.athrow, thrown)
    except BaseException as raised:
        error = raised
        raise
    finally:
        streamed.end(error)
