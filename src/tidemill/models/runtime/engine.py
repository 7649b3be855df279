"""The chat engine: llama.cpp's server, in this process, behind its own loopback listener.

llama.cpp does the batching, the prompt cache, sampling, grammars and the OpenAI wire format; its listener is never
shown to clients: it is bound to a random loopback port and wants a random key.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tidemill.kernel import InvalidInput

_PROMPT_CACHE_MIB: Final = 128  # of finished prompts kept aside; llama.cpp's own default is 8 GiB
_ANSWER_TOKENS: Final = 512  # of a request that sets no limit: small models do not always stop by themselves
_SPIN_COUNT: Final = 2000  # about 30 microseconds
_QUIET: Final = 1  # llama.cpp logs errors only


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """How a chat model is served.

    Args:
        weights: a GGUF file.
        name: the model name that clients ask for.
        threads: cores it may use.
        parallel: requests computed together; more wait their turn.
        context_tokens: tokens of prompts and answers held at once, shared by the parallel requests.
    """

    weights: Path
    name: str
    threads: int = 2
    parallel: int = 8
    context_tokens: int = 8192


class ChatEngine:
    """A loaded chat model that listens for OpenAI requests on loopback. Loading takes about a second.

    Requests that begin with the same tokens reuse what was computed for them: each slot keeps its last prompt, and a
    request goes to the slot whose prompt it shares most of.

    Raises:
        InvalidInput: the file is missing or llama.cpp cannot load it.
    """

    def __init__(self, options: ChatOptions) -> None:
        # Its threads meet at a barrier hundreds of times a token. libgomp lets them spin there for milliseconds, and
        # when another process holds a core the others burn theirs: measured on two cores under load, 2 tokens a second
        # instead of 20. libgomp takes this from the environment alone, when it is loaded, which is the next line.
        os.putenv("GOMP_SPINCOUNT", str(_SPIN_COUNT))
        import xllamacpp

        if not options.weights.is_file():
            raise InvalidInput(f"there is no file '{options.weights}'; pull the chat model first")
        self.options = options
        self.api_key = secrets.token_urlsafe(24)
        try:
            self._server = xllamacpp.Server(_parameters(xllamacpp, options, self.api_key))
        except (RuntimeError, ValueError) as error:
            raise InvalidInput(f"llama.cpp cannot load '{options.weights}': {error}") from error
        self.url = str(self._server.listening_address)

    def close(self) -> None:
        """Stop the engine: running requests end, the listener closes, the memory is given back."""
        # xllamacpp stops the server when its object is deleted; there is no other way.
        del self._server


def _parameters(xllamacpp: Any, options: ChatOptions, api_key: str) -> Any:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(options.weights)
    parameters.model_alias = {options.name}
    parameters.n_ctx = options.context_tokens
    parameters.n_parallel = options.parallel
    parameters.kv_unified = True  # one long request may take what seven short ones leave
    parameters.cache_ram_mib = _PROMPT_CACHE_MIB
    parameters.n_predict = _ANSWER_TOKENS
    parameters.fit_params = False  # sizes are given; probing for them doubles the time to load
    for pool in (parameters.cpuparams, parameters.cpuparams_batch):
        pool.n_threads = options.threads
        pool.poll = 0
    parameters.api_keys = [api_key]
    parameters.hostnames = ["127.0.0.1"]
    parameters.n_threads_http = 8 * options.parallel  # each waiting request holds one
    parameters.endpoint_slots = False
    parameters.ui = False
    parameters.verbosity = _QUIET
    return parameters
