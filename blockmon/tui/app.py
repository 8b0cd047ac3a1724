"""The application: five panes on one backend, laid out by the size of the terminal."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical

from blockmon.backend import Backend, CommandError
from blockmon.config import Config, config_path
from blockmon.model.refresher import Changes, Refresher, ScreenState
from blockmon.options import CommonOptions, StartupError
from blockmon.repl.session import ReplSession
from blockmon.themes import ThemeFile, brief, find_theme
from blockmon.tui.bars import FooterBar, HeaderBar, PromptTitle, Tab, TabBar
from blockmon.tui.commanding import CommandingApp
from blockmon.tui.configured import keymap, keys_of_application, pane_bindings, shown_key, tabs
from blockmon.tui.events_pane import EventsPane
from blockmon.tui.graph_pane import GraphPane
from blockmon.tui.help import help_sections
from blockmon.tui.inspector import InspectorPane
from blockmon.tui.jobs_pane import JobsPane
from blockmon.tui.look import Look
from blockmon.tui.popups import HelpPopup
from blockmon.tui.prompt_pane import PromptPane
from blockmon.tui.rows import RowsPane
from blockmon.tui.subject import JobSubject, Subject
from blockmon.tui.symbols import symbols_for

TINY = 8
"""Rows below which there is room for one pane and nothing else."""
SHORT = 14
"""Rows for pane and prompt below which the prompt gives up what it does not need."""

SETTLED = 1.0
"""Seconds after which what stands once the server is up is there for good."""

TABS = (
    Tab("graph", "F2", "Graph"),
    Tab("inspector", "F6", "Inspector"),
    Tab("jobs", "F3", "Jobs"),
    Tab("events", "F4", "Events"),
)


class BlockmonApp(CommandingApp):
    """
    The screen. It starts *backend* and then *session*, after the first frame stands; closing them is the caller's.

    The result is the program's exit status.
    """

    TITLE = "blockmon"
    ENABLE_COMMAND_PALETTE = False
    AUTO_FOCUS = None
    CSS = """
    Screen { layout: vertical; overflow: hidden; background: $background; color: $foreground; }
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
        Binding("ctrl+z", "suspend_process", "suspend", show=False, priority=True, id="suspend"),
        Binding("f8", "zoom", "zoom", show=False, priority=True, id="zoom.anywhere"),
        Binding("f9", "palette", "commands and views", show=False, priority=True, id="palette.anywhere"),
        # Some terminals keep F1 for themselves.
        Binding("question_mark", "help", "help", key_display="?", show=False, id="help.letter"),
        Binding("a", "actions", "actions", id="actions"),
        Binding("colon,ctrl+p", "palette", "commands", key_display=":", id="palette"),
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
        config: Config | None = None,
    ) -> None:
        self.config = config if config is not None else Config(config_path())
        self.keymap = keymap(self.config, [*self.BINDINGS, *pane_bindings()])
        theme, problems = find_theme(options.theme)
        super().__init__(Look(theme, symbols_for()), low_bandwidth=options.low_bandwidth)
        self.backend = backend
        self.session = session
        self.options = options
        self.state = ScreenState(title=backend.title)
        pause = 1 / self.config.screen.updates
        self.refresher = Refresher(backend, self.state, self._model_changed, clock=clock, coalesce=pause)
        self.start_error: BaseException | None = None
        """Why the backend did not come up; the application has then ended by itself."""
        self._problems = [*self.config.problems, *problems]
        self._built = False
        self._wide = True
        self._tiny = False
        self._at_prompt = False
        self._zoomed: str | None = None
        self._active = self.config.screen.panes[0]
        self._before_inspector = self._active

    # Building the screen.

    def compose(self) -> ComposeResult:
        look, state = self.look, self.state
        self.header = HeaderBar(look, state, id="header")
        self.tabs = TabBar(look, tabs(TABS, self.config, self.keymap), self._tab_note, id="tabs")
        self.graph = GraphPane(look, state, id="graph")
        self.jobs = JobsPane(look, state, id="jobs")
        self.inspector = InspectorPane(look, state, id="inspector")
        self.log_pane = EventsPane(look, state, id="events")
        self.prompt_title = PromptTitle(look, id="prompt-title")
        theme = look.theme
        self.prompt = PromptPane(self.session, prompt_table=theme.prompt, syntax_table=theme.syntax, id="prompt")
        self.prompt.leave_to_application(keys_of_application(self.keymap, self.BINDINGS))
        self.prompt.keep = self.keep_at_prompt
        self.footer = FooterBar(look, id="footer")
        self.inspector.backend = self.backend
        self.log_pane.on_jump = self.reveal
        self.jobs.on_command = self.choose
        for pane in (self.graph, self.jobs, self.log_pane):
            pane.on_choose = self._choose
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
        self.watch_theme_file()
        if self.keymap:
            self.set_keymap(self.keymap)
        if self._problems:
            # There is little room; the prompt has it with the whole path.
            self.theme_problem(self._problems[0].removeprefix(f"{self.config.path.parent}/"))
        for problem in self._problems:
            self.session.notice(problem)
        self._arrange()
        self.focus_first()
        # The frame stands before the backend is opened.
        self.call_after_refresh(lambda: self.run_worker(self._follow(), name="follow"))

    def focus_first(self) -> None:
        """Turn to the pane that one begins at."""
        self.panes[self._active].focus()

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
        self.set_timer(SETTLED, self.settle)
        self.started()
        try:
            await self.refresher.run()
        except CommandError as error:
            self.state.lost = error.desc
            self._model_changed(Changes(status=True))

    def started(self) -> None:
        """Called when the backend stands and the prompt can be used."""

    async def finish(self, status: int) -> int:
        """Called when the screen is gone and the backend still stands; returns the program's exit status."""
        return status

    def _model_changed(self, changes: Changes) -> None:
        if not self._built or self._exit or not self.graph.is_attached:  # or it is about to end
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
        if self._tiny:
            return {"prompt" if self._at_prompt else self._active}
        return {*self.config.screen.panes, "prompt"} if self._wide else {self._active, "prompt"}

    def _arrange(self, width: int | None = None, height: int | None = None) -> None:
        """Show the panes that fit, in the sizes that suit."""
        width, height = width or self.size.width, height or self.size.height
        self._wide = width >= self.config.screen.wide and height >= self.config.screen.tall
        self._tiny = height < TINY
        self.header.display = self.footer.display = not self._tiny
        shown, rule = self._shown(), self.look.symbols
        alone = not self._wide and self._zoomed is None
        self.tabs.display = alone
        self.tabs.active = self._active
        for name, pane in self.panes.items():
            pane.display = name in shown
            pane.show_title = not alone
        left = width * 27 // 50
        both = self._wide and self._zoomed is None and shown & {"graph", "jobs"} and shown & {"inspector", "events"}
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
        rows = height - (0 if self._tiny else 2) - int(alone)
        prompt_rows = self._prompt_rows(rows)
        self.repl.styles.height = "1fr" if shown == {"prompt"} else prompt_rows
        lower = max(4, min(10, (rows - prompt_rows) * 3 // 10))
        for pane, above in ((self.jobs, self.graph), (self.log_pane, self.inspector)):
            pane.styles.height = lower if above.display and pane.display else "1fr"
        # Among tabs the keys that lead to the panes stand with their names.
        key = shown_key(self.keymap.get("pane.repl"), "F5")
        self.prompt_title.key = key if alone else ""
        self.footer.left_out = frozenset({*(tab.key.lower() for tab in self.tabs.tabs), key.lower()} if alone else ())
        for bar in (self.header, self.tabs, self.prompt_title, self.footer):
            bar.update_line()
        for pane in self.panes.values():
            pane.update_rows()

    def _prompt_rows(self, rows: int) -> int:
        """Rows of the prompt with its title: more while one types where there is little room."""
        if self.config.screen.prompt_rows and rows >= SHORT:
            return max(3, min(self.config.screen.prompt_rows, rows - 4))
        if self._wide:
            return max(7, min(14, rows * 3 // 10))
        if rows < SHORT:
            return max(4, rows * 11 // 20) if self._at_prompt else 2
        return max(8, rows * 11 // 20) if self._at_prompt else max(6, rows * 3 // 10)

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        name = event.widget.id or ""
        if name != "prompt" and name not in self.panes:
            return
        if name in self.panes and name != self._active:
            if name != "inspector":
                self._before_inspector = name
            self._active = name
        self.prompt_title.focused_below = self._at_prompt = name == "prompt"
        if self._zoomed is not None:
            self._zoomed = name
        if not self._wide or self._zoomed is not None:
            self._arrange()
        else:
            self.prompt_title.update_line()

    def action_pane(self, name: str) -> None:
        """Turn to a pane."""
        if name in self.panes and name not in self.config.screen.panes:
            self.header.say(f"the configuration leaves out the pane {name}")
            return
        if name == "inspector" and self._active != "inspector":
            self._before_inspector = self._active
        self._at_prompt = name == "prompt"
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

    async def key_at_once(self, event: events.Key) -> bool:
        """Textual hands a key on to the widget in focus, and the next one too, before it does what the first is for.
        What was typed ahead belongs to the pane that the key before leads to."""
        focused = self.focused
        if len(self.screen_stack) > 1 or not isinstance(focused, RowsPane) or focused.takes(event):
            return False
        return await self._check_bindings(event.key, priority=True) or await self._check_bindings(event.key)

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

    def on_events_pane_told(self, message: EventsPane.Told) -> None:
        self.header.say(message.text, error=message.error)

    def reveal(self, subject: Subject | None) -> None:
        """Turn to a thing in the pane that lists it."""
        if isinstance(subject, JobSubject):
            self.jobs.select(subject.serial)
            self.action_pane("jobs")
        elif subject is not None:
            self.graph.reveal(subject)
            self.action_pane("graph")

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Keys that would do nothing are not there."""
        if not self._built:
            return True
        if action in ("help", "pane", "zoom", "next_theme", "palette") and len(self.screen_stack) > 1:
            return False
        if action == "pane" and parameters and parameters[0] != "prompt":
            return parameters[0] in self.config.screen.panes
        if action == "actions":
            return self.can_act()
        if action == "zoom":
            return self.focused is not None
        if action == "back":
            return self._zoomed is not None or self._active == "inspector"
        return True

    # Colours, help, the end.

    def theme_changed(self, theme: ThemeFile) -> None:
        """Change the colours of everything."""
        self.prompt.apply_theme(theme.prompt, theme.syntax)
        self._arrange()

    def theme_problem(self, text: str) -> None:
        """Tell what is wrong with a theme's file."""
        self.header.say(brief(text), error=True)

    def action_help(self) -> None:
        focused = self.focused.id if self.focused is not None else None
        self.push_screen(HelpPopup(self.look, help_sections(self.look, self.BINDINGS, focused, self.keymap)))

    def on_prompt_pane_quit(self) -> None:
        if self.session.ended:
            self.exit(0)
        else:
            self.leave(lambda: self.exit(0))

    def action_help_quit(self) -> None:
        """For those who try Ctrl+C."""
        self.header.say("Ctrl+Q quits")

    async def action_quit(self) -> None:
        self.leave(lambda: self.exit(0))
