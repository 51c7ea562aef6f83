"""A small research assistant in LangGraph: a planner, two researchers side by side, a writer.

    planner ──► researcher (facts)      ──► writer
            └─► researcher (objections) ──┘

Nothing here knows what serves the models. `ChatOpenAI` reads the standard environment variables, so the same file runs
against any OpenAI-compatible endpoint:

    pip install langgraph langchain-openai
    export OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_API_KEY=none OPENAI_MODEL=llama-3.1-8b
    python examples/langgraph_fanout.py "What is a prefix cache?" "And when does it not help?"

Each argument is one turn of the same conversation; a checkpointer keeps the thread between turns.
"""

import os
import sys
from operator import add
from typing import Annotated, TypedDict

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage
from langchain_core.runnables import RunnableConfig
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Send

MODEL = os.environ.get("OPENAI_MODEL", "gpt-4o-mini")
ANGLES = ("the facts that answer it", "the strongest objections")

PLANNER = """You plan research for a careful technical writer. Read the whole conversation, then say in a few lines what \
must be found out to answer the last question: what is known already, what is missing, what would change the answer."""
RESEARCHER = """You are one of two researchers who work side by side on the same plan. Report only what concerns your own \
angle, in short numbered points, each with the reason why it matters for the question."""
WRITER = """You write the answer. Use the researchers' points, keep what they agree on, name what they do not agree on, \
and stay below two hundred words."""


class State(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]
    plan: str
    findings: Annotated[list[str], add]


class Assignment(TypedDict):
    plan: str
    angle: str


llm = ChatOpenAI(model=MODEL, max_tokens=200)


def planner(state: State) -> dict[str, object]:
    return {"plan": llm.invoke([SystemMessage(PLANNER), *state["messages"]]).content}


def assign(state: State) -> list[Send]:
    return [Send("researcher", Assignment(plan=state["plan"], angle=angle)) for angle in ANGLES]


def researcher(task: Assignment) -> dict[str, object]:
    asked = f"The plan:\n{task['plan']}\n\nYour angle: {task['angle']}"
    return {"findings": [llm.invoke([SystemMessage(RESEARCHER), HumanMessage(asked)]).content]}


def writer(state: State) -> dict[str, object]:
    points = "\n\n".join(state["findings"][-len(ANGLES) :])
    asked = HumanMessage(f"The researchers found:\n{points}\n\nNow write the answer.")
    answer = llm.invoke([SystemMessage(WRITER), *state["messages"], asked])
    return {"messages": [AIMessage(answer.content)]}


def build() -> CompiledStateGraph:
    graph = StateGraph(State)
    graph.add_node("planner", planner)
    graph.add_node("researcher", researcher)
    graph.add_node("writer", writer)
    graph.add_edge(START, "planner")
    graph.add_conditional_edges("planner", assign, ["researcher"])
    graph.add_edge("researcher", "writer")
    graph.add_edge("writer", END)
    return graph.compile(checkpointer=InMemorySaver())


def main(questions: list[str]) -> None:
    app = build()
    thread: RunnableConfig = {"configurable": {"thread_id": "1"}}
    for question in questions:
        state = app.invoke({"messages": [HumanMessage(question)]}, thread)
        print(f"> {question}\n{state['messages'][-1].content}\n")


if __name__ == "__main__":
    main(sys.argv[1:] or ["What is a prefix cache?", "And when does it not help?"])
