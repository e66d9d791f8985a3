"""A language model as a function from prompts to answers.

    complete = llm.server("http://localhost:8000/v1", "my-model", folder=Path("answers"))
    answers = complete([llm.Prompt("You are terse.", "Which film next?")])

`server` asks a server that speaks OpenAI's chat completions, `local` a decoder in this process.
The module `estimate` says before a run what it will take.
"""

from jaxrec.llm.estimate import Estimate, tell
from jaxrec.llm.local_decoder import local
from jaxrec.llm.openai_server import server
from jaxrec.llm.protocol import Answer, Complete, Prompt, Usage

__all__ = ["Answer", "Complete", "Estimate", "Prompt", "Usage", "local", "server", "tell"]
