"""Everything about one thing: a node, an edge, a parent, a job or an event, in sections."""

from __future__ import annotations

from collections.abc import Coroutine, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from rich.cells import cell_len
from textual.binding import Binding, BindingType
from textual.timer import Timer

from blockmon.backend import Backend
from blockmon.model.details import Answer, Details
from blockmon.model.format import elide_middle, safe_text
from blockmon.model.refresher import Changes, ScreenState
from blockmon.tui.inspect_pages import pages_for
from blockmon.tui.inspect_text import Pieces, View, wrap
from blockmon.tui.line import Line
from blockmon.tui.look import Look
from blockmon.tui.rows import RowsPane
from blockmon.tui.subject import BrokenEdgeSubject, EventSubject, JobSubject, NodeSubject, ParentSubject, Subject

_SHORT = {"Permissions": "Perms"}
"""What sections are called where there is little room."""
TICK = 1.0
"""Seconds between two looks at what is asked for over and over."""
_SHARED = ("query-",)
"""Answers that tell of all things at once are kept when another is looked at."""


class InspectorPane(RowsPane):
    """The inspector. It follows what is selected in the other panes."""

    title = "Inspector"
    has_cursor = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("right,l,right_square_bracket", "section(1)", "section", key_display="→", id="inspector.section"),
        Binding("left,h,left_square_bracket", "section(-1)", "previous section", key_display="←", show=False),
        Binding("1", "section_number(1)", "turn to a section", key_display="1-7", show=False),
        *(Binding(str(number), f"section_number({number})", show=False) for number in range(2, 8)),
        Binding("y", "copy", "copy", id="inspector.copy"),
        Binding("r", "reload", "ask again", id="inspector.reload"),
    ]

    def __init__(self, look: Look, state: ScreenState, *, id: str | None = None) -> None:
        super().__init__(look, id=id)
        self.state = state
        self.details = Details(self._start, self.renew)
        self.subject: Subject | None = None
        self.section = "Overview"
        self._lines: list[Pieces] = []
        self._wrapped: list[Pieces] = []
        self._wrapped_width = -1
        self._tops: dict[str, int] = {}
        self._stamp = 0
        """Grows when what was asked for may have changed."""
        self._asked = False
        self._timer: Timer | None = None

    # What there is.

    @property
    def sections(self) -> list[str]:
        """The names of the sections that the subject has."""
        return list(pages_for(self.state, self.subject))

    @property
    def backend(self) -> Backend | None:
        """Who is asked."""
        return self.details.backend

    @backend.setter
    def backend(self, backend: Backend | None) -> None:
        self.details.backend = backend

    def inspect(self, subject: Subject | None) -> None:
        """Show *subject* from now on, in the section shown before where it has that."""
        if subject == self.subject:
            return
        self.subject = subject
        self.top = 0
        self._tops.clear()
        self.details.drop(_SHARED)
        self.renew()

    def model_changed(self, changes: Changes) -> None:
        """Take in what changed."""
        if changes.graph.rows or changes.jobs or changes.status:
            self._stamp += 1
        if changes.graph.rows or changes.io or changes.jobs or changes.status:
            self.renew()

    def renew(self) -> None:
        """Put the text together anew."""
        self._gone()
        pages = pages_for(self.state, self.subject)
        page = pages.get(self.section) or next(iter(pages.values()), None)
        self._asked = False
        self.details.waiting = False
        self._lines = page(View(self.state, self.look, self.inner_width, self._ask)) if page is not None else []
        self._wrapped_width = -1
        if self._timer is not None:
            # Nothing ticks where nothing has to be asked for again.
            if self._asked or self.details.waiting:
                self._timer.resume()
            else:
                self._timer.pause()
        self.update_rows()

    def _ask(self, command: str, arguments: Mapping[str, Any] | None, every: float | None) -> Answer:
        """Ask the server for the page that is looked at; one that is not in sight keeps what is known."""
        if every is not None:
            self._asked = True
        if not self.display or not self.size.area:
            return self.details.known(command, arguments)
        return self.details.ask(command, arguments, stamp=self._stamp, every=every)

    def _start(self, query: Coroutine[Any, Any, None]) -> None:
        self.run_worker(query, group="details")

    def on_mount(self) -> None:
        self._timer = self.set_interval(TICK, self._tick, pause=True)

    def _tick(self) -> None:
        if self.display and self.size.area:
            self.renew()

    def on_show(self) -> None:
        """Ask for what was not asked for while nobody saw it."""
        self.renew()

    def on_resize(self) -> None:
        """The columns of a page depend on its width."""
        self.renew()

    def _gone(self) -> None:
        """Forget a subject that does not exist any more."""
        state, subject = self.state, self.subject
        if (
            (isinstance(subject, NodeSubject) and subject.name not in state.graph.nodes)
            or (isinstance(subject, ParentSubject) and subject.key not in state.graph.parents)
            or (isinstance(subject, JobSubject) and state.jobs.by_serial(subject.serial) is None)
        ):
            self.subject = None

    # Drawing.

    def count(self) -> int:
        width = self.inner_width
        if width != self._wrapped_width:
            self._wrapped = [part for pieces in self._lines for part in wrap(pieces, width)]
            self._wrapped_width = width
        return len(self._wrapped)

    def draw(self, index: int, line: Line) -> Line:
        for text, style in self._wrapped[index]:
            line.add(text, style)
        return line

    def empty_text(self) -> Sequence[str]:
        return ("Nothing is selected.",)

    def title_text(self) -> str:
        subject, state = self.subject, self.state
        dot = f" {self.look.symbols.dot} "
        if isinstance(subject, NodeSubject):
            node = state.graph.nodes.get(subject.name)
            if node is not None:
                return dot.join((safe_text(node.name), node.driver, "ro" if node.read_only else "rw"))
        if isinstance(subject, ParentSubject):
            parent = state.graph.parents.get(subject.key)
            if parent is not None:
                return dot.join((safe_text(parent.name or parent.id), parent.model or parent.kind))
        if isinstance(subject, BrokenEdgeSubject):
            return dot.join((safe_text(subject.edge.name), "broken link"))
        if isinstance(subject, JobSubject):
            job = state.jobs.by_serial(subject.serial)
            if job is not None:
                return dot.join(filter(None, (safe_text(job.id), job.type, job.word)))
        if isinstance(subject, EventSubject):
            return safe_text(subject.entry.name)
        return self.title

    def heading(self, line: Line) -> Line | None:
        sections = self.sections
        if len(sections) < 2 and self.show_title:
            return None
        current = sections.index(self.section) if self.section in sections else 0
        # Among tabs there is no title that would name it; the name alone is enough where the numbers then have room.
        whole = self.title_text() if not self.show_title and self.subject is not None else ""
        short = whole.partition(f" {self.look.symbols.dot} ")[0]
        heads = list(_heads(sections, current))
        for variant, name in (*((head, whole) for head in heads[:-1]), (heads[-2], short), (heads[-1], whole)):
            if sum(cell_len(text) for text, _ in variant) + (cell_len(name) + 2 if name else 0) <= line.width:
                break
        else:
            name = elide_middle(short, max(0, line.width // 3), self.look.symbols.ellipsis)
            variant = _window(heads[-1], line.width - (cell_len(name) + 2 if name else 0), self.look)
        for text, style in variant:
            line.add(text, "tab-active" if style == "strong" and self.has_focus else style)
        if name:
            line.to(max(line.used, line.width - cell_len(name))).add(name, "strong")
        return line

    # Keys.

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Asking again makes sense for what was asked for only once."""
        if action == "reload":
            return self.section in ("Options", "Image", "JSON") and self.section in self.sections
        if action == "section":
            return len(self.sections) > 1
        return True

    def show_section(self, name: str) -> None:
        """Turn to a section; each keeps its own place."""
        self._tops[self.section] = self.top
        self.section = name
        self.top = self._tops.get(name, 0)
        self.renew()
        self.screen.refresh_bindings()

    def action_section(self, step: int) -> None:
        sections = self.sections
        if sections:
            current = sections.index(self.section) if self.section in sections else 0
            self.show_section(sections[(current + step) % len(sections)])

    def action_section_number(self, number: int) -> None:
        sections = self.sections
        if number <= len(sections):
            self.show_section(sections[number - 1])

    def action_copy(self) -> None:
        text = "\n".join("".join(part for part, _ in pieces).rstrip() for pieces in self._lines)
        if text:
            self.post_message(self.Copied(text, "the page"))

    def action_reload(self) -> None:
        self.details.forget()
        self.renew()


def _heads(sections: Sequence[str], current: int) -> Iterator[Pieces]:
    """The sections as a line, in ever shorter forms; the one that is shown stands out."""
    for short, numbered, gap in ((False, True, 2), (True, True, 2), (True, True, 1), (True, False, 1)):
        line: Pieces = []
        for number, full in enumerate(sections):
            name = _SHORT.get(full, full) if short else full
            if number == current:
                line.append((f"{number + 1} {name}" if numbered else name, "strong"))
            else:
                line += [(f"{number + 1} ", "faint")] if numbered else []
                line.append((name, "dim"))
            line.append((" " * gap, "text"))
        yield line[:-1]


def _window(line: Pieces, room: int, look: Look) -> Pieces:
    """The part of a line of sections around the one that is shown."""
    mark = look.symbols.ellipsis
    place = next(number for number, (_, style) in enumerate(line) if style == "strong")
    first = last = place
    used = cell_len(line[place][0]) + 2 * cell_len(mark)
    while True:
        for step in (last + 2, first - 2):
            more = cell_len(line[step][0]) + 1 if 0 <= step < len(line) else room
            if used + more <= room:
                used += more
                first, last = min(first, step), max(last, step)
                break
        else:
            break
    before: Pieces = [(mark, "faint")] if first else []
    return [*before, *line[first : last + 1], *([(mark, "faint")] if last + 1 < len(line) else [])]
