//! The live view on a terminal.

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Context;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::prelude::{Frame, Line, Modifier, Style, Stylize};
use ratatui::widgets::{Block, Cell, Paragraph, Row as TableRow, Table, Wrap};
use tokio::sync::mpsc;

use super::lines::{COLUMNS, Client, cells};
use super::measure::Row;

/// What is shown.
pub(super) struct View<'a> {
    pub(super) elapsed: Duration,
    pub(super) client: Client,
    pub(super) rows: &'a [Row],
    pub(super) ingress: String,
    /// Lines to try by hand.
    pub(super) curl: &'a [String],
    /// What has happened, newest last.
    pub(super) events: &'a [String],
    pub(super) notes: &'a str,
}

/// The terminal while it is ours; dropping this gives it back.
pub(super) struct Screen {
    terminal: DefaultTerminal,
    /// Ctrl-C or q was pressed: in this mode no signal comes of it.
    pub(super) quit: mpsc::UnboundedReceiver<()>,
}

impl Screen {
    /// Whether there is a terminal to draw on.
    pub(super) fn is_possible() -> bool {
        std::io::stdout().is_terminal() && std::io::stdin().is_terminal()
    }

    pub(super) fn open() -> anyhow::Result<Self> {
        let terminal = ratatui::try_init().context("the terminal")?;
        let (sender, quit) = mpsc::unbounded_channel();
        std::thread::Builder::new().name("keys".to_owned()).spawn(move || keys(&sender))?;
        Ok(Self { terminal, quit })
    }

    pub(super) fn draw(&mut self, view: &View<'_>) -> anyhow::Result<()> {
        self.terminal.draw(|frame| draw(frame, view))?;
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

fn keys(quit: &mpsc::UnboundedSender<()>) {
    while !quit.is_closed() {
        match event::poll(Duration::from_millis(200)) {
            Ok(true) => {}
            Ok(false) => continue,
            Err(_) => return,
        }
        let Ok(Event::Key(key)) = event::read() else { continue };
        let ctrl_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
        if key.kind == KeyEventKind::Press && (ctrl_c || key.code == KeyCode::Char('q')) {
            let _ = quit.send(());
        }
    }
}

fn draw(frame: &mut Frame<'_>, view: &View<'_>) {
    let length = |n: usize| u16::try_from(n).unwrap_or(u16::MAX).saturating_add(2);
    let [head, table, try_it, events, foot] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(length(view.rows.len() + 1)),
        Constraint::Length(length(view.curl.len())),
        Constraint::Min(3),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let failed = match view.client.failed {
        0 => "0 failed".green(),
        n => format!("{n} failed").red().bold(),
    };
    let title = Line::from(vec![
        "Weft".bold(),
        format!("  EcoTrack's mesh, {}s  ", view.elapsed.as_secs()).into(),
        format!("{} requests through {}, ", view.client.sent, view.ingress).into(),
        failed,
    ]);
    frame.render_widget(Paragraph::new(title), head);
    frame.render_widget(services(view.rows), table);
    let lines: Vec<_> = view.curl.iter().map(|l| Line::from(l.as_str())).collect();
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(" try ")), try_it);
    let room = usize::from(events.height.saturating_sub(2));
    let shown = &view.events[view.events.len().saturating_sub(room)..];
    let lines: Vec<_> = shown.iter().map(|l| Line::from(l.as_str())).collect();
    let block = Block::bordered().title(" events ");
    frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: false }).block(block), events);
    frame.render_widget(Paragraph::new(format!("q or Ctrl-C ends it; {}", view.notes)).dim(), foot);
}

fn services(rows: &[Row]) -> Table<'_> {
    let titles = COLUMNS.map(|(title, width)| right(title.to_owned(), width, title == "service"));
    let body = rows.iter().map(|row| {
        let styled = cells(row).into_iter().zip(COLUMNS).map(|(text, (title, width))| {
            let style = match title {
                "up" if row.up < row.instances => Style::new().red().bold(),
                "success" if row.success.is_some_and(|s| s < 99.9) => Style::new().red().bold(),
                "mTLS" if row.mutual_tls.is_some_and(|s| s < 100.0) => Style::new().red().bold(),
                "mTLS" | "success" => Style::new().green(),
                _ => Style::new(),
            };
            Cell::from(right(text, width, title == "service")).style(style)
        });
        TableRow::new(styled.collect::<Vec<_>>())
    });
    Table::new(body.collect::<Vec<_>>(), COLUMNS.map(|(_, width)| Constraint::Length(width)))
        .header(TableRow::new(titles).style(Style::new().add_modifier(Modifier::BOLD)))
        .block(Block::bordered().title(" services, last 10 s "))
}

fn right(text: String, width: u16, left: bool) -> String {
    if left { text } else { format!("{text:>width$}", width = usize::from(width)) }
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    #[test]
    fn services_curl_lines_and_events_are_on_the_screen() {
        let rows = [Row {
            service: "user-service".to_owned(),
            up: 4,
            instances: 4,
            requests_per_second: 24.0,
            success: Some(100.0),
            mutual_tls: Some(100.0),
            ..Row::default()
        }];
        let view = View {
            elapsed: Duration::from_secs(7),
            client: Client { sent: 300, fine: 299, failed: 1 },
            rows: &rows,
            ingress: "127.0.2.1:8080".to_owned(),
            curl: &["curl http://x/".to_owned()],
            events: &["the proxy of a ended".to_owned()],
            notes: "logs are in /l",
        };
        let mut terminal = Terminal::new(TestBackend::new(100, 20)).unwrap();
        terminal.draw(|frame| draw(frame, &view)).unwrap();
        let text: String = terminal.backend().buffer().content().iter().map(|c| c.symbol()).collect();
        for expected in [
            "300 requests through 127.0.2.1:8080, 1 failed",
            "user-service",
            "4/4",
            "24.0",
            "100.0%",
            "yes",
            "curl http://x/",
            "the proxy of a ended",
            "logs are in /l",
        ] {
            assert!(text.contains(expected), "{expected} is not in {text}");
        }
    }
}
