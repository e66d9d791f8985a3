"""AgentCF++ with a language model that thinks: agents whose memories are text.

`method` runs it and says what it does. An event is four calls (`stages`) in the words of `prompts`
and of `names`; `dataflow` makes every call that is ready at once. `ranking` asks for the order of
candidates and shows what the groups of `interests` took. `forecast` says beforehand what a run
takes, `story` what a user lived through.
"""

from jaxrec.methods.agentcf.text_engine.config import Config
from jaxrec.methods.agentcf.text_engine.method import TRAITS, make
from jaxrec.methods.agentcf.text_engine.state import Metrics, State
from jaxrec.methods.agentcf.text_engine.story import story

__all__ = ["TRAITS", "Config", "Metrics", "State", "make", "story"]
