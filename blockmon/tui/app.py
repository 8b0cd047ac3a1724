"""The application: five panes on one backend, laid out by the size of the terminal."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import ClassVar

from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical

from blockmon.backend import Backend, CommandError
from blockmon.model.format import safe_text
from blockmon.model.refresher import Changes, Refresher, ScreenState
from blockmon.options import CommonOptions, StartupError
from blockmon.repl.session import ReplSession
from blockmon.themes import ThemeFile, find_theme, load_themes
from blockmon.tui.actions import choices
from blockmon.tui.bars import FooterBar, HeaderBar, PromptTitle, Tab, TabBar
from blockmon.tui.events_pane import EventsPane
from blockmon.tui.graph_pane import GraphPane
from blockmon.tui.help import help_sections
from blockmon.tui.inspector import InspectorPane
from blockmon.tui.jobs_pane import JobsPane
from blockmon.tui.look import Look, textual_theme
from blockmon.tui.popups import ActionsPopup, HelpPopup
from blockmon.tui.prompt_pane import PromptPane
from blockmon.tui.rows import RowsPane
from blockmon.tui.subject import JobSubject, NodeSubject, Subject
from blockmon.tui.symbols import symbols_for

WIDE = 110
"""Columns from which on all panes stand side by side."""
TALL = 22
"""Rows that this takes."""

TABS = (
    Tab("graph", "F2", "Graph"),
    Tab("inspector", "F6", "Inspector"),
    Tab("jobs", "F3", "Jobs"),
    Tab("events", "F4", "Events"),
)


class BlockmonApp(App[int]):
    """
    The screen. It starts *backend* and then *session*, after the first frame stands; closing them is the caller's.

    The result is the program's exit status.
    """

    TITLE = "blockmon"
    ENABLE_COMMAND_PALETTE = False
    AUTO_FOCUS = None
    CSS = """
    Screen { layout: vertical; background: $background; color: $foreground; }
    Popup { background: transparent; }
    #body { height: 1fr; }
    #left { width: 1fr; }
    #right { width: 1fr; }
    #repl { height: 8; }
    #prompt { height: 1fr; margin: 0 0 0 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        # The F-keys come first, so that keys typed right after one go where it leads.
        Binding("f1", "help", "help", priority=True, id="help"),
        Binding("f2", "pane('graph')", "graph", priority=True, id="pane.graph"),
        Binding("f3", "pane('jobs')", "jobs", priority=True, id="pane.jobs"),
        Binding("f4", "pane('events')", "events", priority=True, id="pane.events"),
        Binding("f5", "pane('prompt')", "repl", priority=True, id="pane.repl"),
        Binding("f6", "pane('inspector')", "inspector", priority=True, id="pane.inspector"),
        Binding("f7", "next_theme", "next theme", show=False, priority=True, id="theme.next"),
        Binding("f8", "zoom", "zoom", show=False, priority=True, id="zoom.anywhere"),
        Binding("a", "actions", "actions", id="actions"),
        Binding("z", "zoom", "zoom", id="zoom"),
        Binding("escape", "back", "back", key_display="Esc", id="back"),
        Binding("ctrl+q", "quit", "quit", priority=True, id="quit"),
    ]

    def __init__(
        self,
        backend: Backend,
        session: ReplSession,
        options: CommonOptions,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        theme, problems = find_theme(options.theme)
        self.look = Look(theme, symbols_for())
        ours = textual_theme(theme)
        super().__init__(ansi_color=True if ours.ansi else None)
        self.register_theme(ours)
        self.theme = ours.name
        self.backend = backend
        self.session = session
        self.options = options
        self.state = ScreenState(title=backend.title)
        self.refresher = Refresher(backend, self.state, self._model_changed, clock=clock)
        self.start_error: BaseException | None = None
        """Why the backend did not come up; the application has then ended by itself."""
        self._problems = problems
        self._built = False
        self._wide = True
        self._zoomed: str | None = None
        self._active = "graph"
        self._before_inspector = "graph"

    # Building the screen.

    def compose(self) -> ComposeResult:
        look, state = self.look, self.state
        self.header = HeaderBar(look, state, id="header")
        self.tabs = TabBar(look, TABS, self._tab_note, id="tabs")
        self.graph = GraphPane(look, state, id="graph")
        self.jobs = JobsPane(look, state, id="jobs")
        self.inspector = InspectorPane(look, state, id="inspector")
        self.log_pane = EventsPane(look, state, id="events")
        self.prompt_title = PromptTitle(look, id="prompt-title")
        theme = look.theme
        self.prompt = PromptPane(self.session, prompt_table=theme.prompt, syntax_table=theme.syntax, id="prompt")
        self.footer = FooterBar(look, id="footer")
        self.inspector.backend = self.backend
        self.panes: dict[str, RowsPane] = {
            "graph": self.graph, "jobs": self.jobs, "inspector": self.inspector, "events": self.log_pane,
        }  # fmt: skip
        yield self.header
        yield self.tabs
        with Horizontal(id="body") as self.body:
            with Vertical(id="left") as self.left:
                yield self.graph
                yield self.jobs
            with Vertical(id="right") as self.right:
                yield self.inspector
                yield self.log_pane
        with Vertical(id="repl") as self.repl:
            yield self.prompt_title
            yield self.prompt
        yield self.footer

    def on_mount(self) -> None:
        self._built = True
        if self._problems:
            self.header.say(self._problems[0], error=True)
        self._arrange()
        self.graph.focus()
        # The frame stands before the backend is opened.
        self.call_after_refresh(lambda: self.run_worker(self._follow(), name="follow"))

    async def _follow(self) -> None:
        """Bring the backend up and follow it."""
        self.refresher.listen()
        try:
            await self.backend.start()
        except (StartupError, CommandError, OSError) as error:
            self.start_error = error
            self.exit(1)
            return
        await self.session.start()
        try:
            await self.refresher.run()
        except CommandError as error:
            self.state.lost = error.desc
            self._model_changed(Changes(status=True))

    def _model_changed(self, changes: Changes) -> None:
        if not self._built or self._exit:
            return
        self.graph.model_changed(changes)
        self.jobs.model_changed(changes)
        self.log_pane.model_changed(changes)
        if self.inspector.subject is None and changes.graph.shape:
            self.inspector.inspect(self.graph.subject())
        if changes.graph.rows:
            # One fetch serves both the picture and the completion.
            self.session.knowledge.names.feed(self.state.graph)
        self.inspector.model_changed(changes)
        self.header.update_line()
        self.tabs.update_line()
        if changes.status:
            self.screen.refresh_bindings()

    def _tab_note(self, pane: str) -> str:
        if pane == "jobs":
            return str(self.state.jobs.active or "")
        return ""

    # The layout.

    def on_resize(self, event: events.Resize) -> None:
        self._arrange(event.size.width, event.size.height)

    def _shown(self) -> set[str]:
        if self._zoomed is not None:
            return {self._zoomed}
        return {*self.panes, "prompt"} if self._wide else {self._active, "prompt"}

    def _arrange(self, width: int | None = None, height: int | None = None) -> None:
        """Show the panes that fit, in the sizes that suit."""
        width, height = width or self.size.width, height or self.size.height
        self._wide = width >= WIDE and height >= TALL
        shown, rule = self._shown(), self.look.symbols
        tabs = not self._wide and self._zoomed is None
        self.tabs.display = tabs
        self.tabs.active = self._active
        for name, pane in self.panes.items():
            pane.display = name in shown
            pane.show_title = not tabs
        left = width * 27 // 50
        both = self._wide and self._zoomed is None
        for column, members, columns in (
            (self.left, ("graph", "jobs"), left),
            (self.right, ("inspector", "events"), width - left),
        ):
            column.display = any(name in shown for name in members)
            column.styles.width = columns if both else "1fr"
        self.inspector.rule = rule.rule_down if both else ""
        self.log_pane.rule = rule.rule_cross if both else ""
        self.prompt_title.join_at = left if both else None
        self.body.display = shown != {"prompt"}
        self.repl.display = "prompt" in shown
        rows = height - 2 - int(tabs)
        prompt_rows = self._prompt_rows(rows)
        self.repl.styles.height = "1fr" if shown == {"prompt"} else prompt_rows
        lower = max(4, min(10, (rows - prompt_rows) * 3 // 10)) if both else None
        for pane in (self.jobs, self.log_pane):
            pane.styles.height = "1fr" if lower is None else lower
        self.footer.left_out = frozenset(tab.key.lower() for tab in TABS) if tabs else frozenset()
        for bar in (self.header, self.tabs, self.prompt_title, self.footer):
            bar.update_line()
        for pane in self.panes.values():
            pane.update_rows()

    def _prompt_rows(self, rows: int) -> int:
        """Rows of the prompt with its title: more while one types where there is little room."""
        if self._wide:
            return max(7, min(14, rows * 3 // 10))
        return max(8, rows * 11 // 20) if self.prompt.has_focus else max(6, rows * 3 // 10)

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        name = event.widget.id or ""
        if name != "prompt" and name not in self.panes:
            return
        if name in self.panes and name != self._active:
            if name != "inspector":
                self._before_inspector = name
            self._active = name
        self.prompt_title.focused_below = name == "prompt"
        if self._zoomed is not None:
            self._zoomed = name
        if not self._wide or self._zoomed is not None:
            self._arrange()
        else:
            self.prompt_title.update_line()

    def action_pane(self, name: str) -> None:
        """Turn to a pane."""
        if name == "inspector" and self._active != "inspector":
            self._before_inspector = self._active
        if name in self.panes:
            self._active = name
        if self._zoomed is not None:
            self._zoomed = name
        self._arrange()
        # At once, unlike Widget.focus(): keys that were typed ahead belong to this pane already.
        self.screen_stack[0].set_focus(self.prompt if name == "prompt" else self.panes[name])

    def action_zoom(self) -> None:
        """Give all the room to the focused pane, or take it back."""
        focused = self.focused.id if self.focused is not None else None
        self._zoomed = None if self._zoomed is not None else focused
        self._arrange()

    async def action_back(self) -> None:
        """Out of a zoomed pane, or from the inspector to where one came from."""
        if self._zoomed is not None:
            self.action_zoom()
        elif self._active == "inspector":
            self.action_pane(self._before_inspector)

    # What is selected.

    def on_graph_pane_selected(self, message: GraphPane.Selected) -> None:
        if self.graph.has_focus or self.inspector.subject is None:
            self.inspector.inspect(message.subject)

    def on_jobs_pane_selected(self, message: JobsPane.Selected) -> None:
        if self.jobs.has_focus and message.subject is not None:
            self.inspector.inspect(message.subject)

    def on_events_pane_selected(self, message: EventsPane.Selected) -> None:
        if self.log_pane.has_focus and message.subject is not None and self.log_pane.paused:
            self.inspector.inspect(message.subject)

    def _choose(self, subject: Subject | None) -> None:
        if subject is not None:
            self.inspector.inspect(subject)
            self.action_pane("inspector")

    def on_graph_pane_chosen(self, message: GraphPane.Chosen) -> None:
        self._choose(message.subject)

    def on_jobs_pane_chosen(self, message: JobsPane.Chosen) -> None:
        self._choose(message.subject)

    def on_events_pane_chosen(self, message: EventsPane.Chosen) -> None:
        self._choose(message.subject)

    def on_tab_bar_picked(self, message: TabBar.Picked) -> None:
        self.action_pane(message.pane_id)

    def selection(self) -> Subject | None:
        """What the focused pane has selected."""
        focused = self.focused
        if isinstance(focused, (GraphPane, JobsPane, EventsPane)):
            return focused.subject()
        return self.inspector.subject if focused is self.inspector else None

    def on_rows_pane_copied(self, message: RowsPane.Copied) -> None:
        """By way of the terminal (OSC 52), which works through ssh too."""
        self.copy_to_clipboard(message.text)
        self.header.say(f"copied {message.what}")

    # Commands for the prompt.

    def write_command(self, text: str) -> None:
        """Put a command into the prompt, and turn to it."""
        self.action_pane("prompt")
        self.prompt.set_input(text)

    def on_jobs_pane_command(self, message: JobsPane.Command) -> None:
        self.write_command(message.text)

    def action_actions(self) -> None:
        """Open the menu of what can be done to the selection."""
        subject = self.selection()
        found = choices(self.state, subject)
        if not found:
            return
        name = ""
        if isinstance(subject, NodeSubject):
            name = subject.name
        elif isinstance(subject, JobSubject):
            job = self.state.jobs.by_serial(subject.serial)
            name = job.id if job is not None else ""

        def chosen(command: str | None) -> None:
            if command is not None:
                self.write_command(command)

        self.push_screen(ActionsPopup(self.look, safe_text(name), found), chosen)

    def action_node(self, key: str) -> None:
        """Write the command of a node's action."""
        for choice in choices(self.state, self.selection()):
            if choice.key == key:
                self.write_command(choice.command)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Keys that would do nothing are not there."""
        if not self._built:
            return True
        if action in ("help", "pane", "zoom", "next_theme") and len(self.screen_stack) > 1:
            return False
        if action == "actions":
            return bool(choices(self.state, self.selection()))
        if action == "zoom":
            return self.focused is not None
        if action == "back":
            return self._zoomed is not None or self._active == "inspector"
        return True

    # Themes, help, the end.

    def use_theme(self, theme: ThemeFile) -> None:
        """Change the colours of everything."""
        self.look.use(theme)
        ours = textual_theme(theme)
        self.register_theme(ours)
        self.ansi_color = True if ours.ansi else None
        self.theme = ours.name
        self.prompt.apply_theme(theme.prompt, theme.syntax)
        self._arrange()
        self.refresh(layout=False)

    def action_next_theme(self) -> None:
        themes, _ = load_themes()
        names = sorted(themes)
        if names:
            current = self.look.theme.name
            following = [name for name in names if name > current] or names
            self.use_theme(themes[following[0]])

    def action_help(self) -> None:
        self.push_screen(HelpPopup(self.look, help_sections(self.look, self.BINDINGS)))

    def on_prompt_pane_quit(self) -> None:
        self.exit(0)

    def action_help_quit(self) -> None:
        """For those who try Ctrl+C."""
        self.header.say("Ctrl+Q quits")

    async def action_quit(self) -> None:
        self.exit(0)
