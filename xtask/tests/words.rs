//! The texts of the product are in plain words: log messages, errors, and the help of every command. A log message is constant,
//! and its values are fields. No text ends with a period, or uses a word that the house style bans.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use std::path::{Path, PathBuf};
use std::process::Command;

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

/// The crates of the product.
const FOLDERS: [&str; 4] = ["contract", "processor", "edge", "simulator"];

const MACROS: [&str; 5] = ["trace", "debug", "info", "warn", "error"];

/// Words that readers stumble over.
const BANNED: [&str; 24] = [
    "anew",
    "mend",
    "mends",
    "mended",
    "for ever",
    "in hand",
    "goes on",
    "go on",
    "lets go",
    "let go",
    "comes to be",
    "at the most",
    "in the dark",
    "is said",
    "asked for",
    "made of",
    "whoever",
    "lest",
    "is no",
    "are no",
    "was no",
    "fell over",
    "is none",
    "put right",
];

/// Words with a capital letter that may begin a text.
const NAMES: [&str; 1] = ["Cloudflare"];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Log,
    Error,
    Help,
}

/// What is wrong with a text.
fn faults(kind: Kind, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let words =
        format!(" {} ", text.to_lowercase().replace(|c: char| !c.is_alphanumeric() && c != '\'', " "));
    // "There is no task" and "is no longer" are as they should be.
    let words = words.replace(" there is no ", " ").replace(" is no longer ", " ");
    let banned = BANNED.iter().filter(|word| words.contains(&format!(" {word} ")));
    faults.extend(banned.map(|word| format!("the banned word {word:?}")));
    if words.starts_with(" what ") {
        faults.push("begins with \"what\"".to_owned());
    }
    if text.ends_with('.') && !text.ends_with("...") {
        faults.push("ends with a period".to_owned());
    }
    let first = text.split_whitespace().next().unwrap_or_default();
    let is_name = NAMES.contains(&first) || first.chars().skip(1).any(char::is_uppercase);
    let is_capital = first.starts_with(char::is_uppercase);
    match kind {
        Kind::Log if text.contains('{') => faults.push("a value in the message".to_owned()),
        Kind::Log | Kind::Error if is_capital && !is_name => {
            faults.push("begins with a capital letter".to_owned());
        }
        Kind::Help if !is_capital && !first.is_empty() && !first.starts_with(char::is_numeric) => {
            faults.push("begins with a small letter".to_owned());
        }
        _ => {}
    }
    faults
}

/// The text of a string literal, if it is one.
fn string(token: &TokenTree) -> Option<String> {
    let TokenTree::Literal(literal) = token else { return None };
    let literal = literal.to_string();
    let body = literal.strip_prefix('"')?.strip_suffix('"')?;
    // A backslash at the end of a line swallows the space that follows.
    let mut text = String::new();
    let mut rest = body.chars().peekable();
    while let Some(c) = rest.next() {
        match (c, rest.peek()) {
            ('\\', Some('\n')) => while rest.next_if(|c| c.is_whitespace()).is_some() {},
            ('\\', Some(_)) => text.extend(rest.next()),
            _ => text.push(c),
        }
    }
    Some(text)
}

/// The message of a log macro: its last argument, if that is a constant.
fn message(arguments: &Group) -> Option<String> {
    let tokens: Vec<_> = arguments.stream().into_iter().collect();
    let is_comma = |token: &TokenTree| matches!(token, TokenTree::Punct(mark) if mark.as_char() == ',');
    let last = tokens.split(is_comma).rfind(|part| !part.is_empty())?;
    match last {
        [only] => string(only),
        _ => None,
    }
}

/// All texts in a source: of log macros, and of thiserror's attributes.
fn texts(tokens: TokenStream, found: &mut Vec<(Kind, String)>) {
    let tokens: Vec<_> = tokens.into_iter().collect();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        match (token, tokens.get(at + 1), tokens.get(at + 2)) {
            (TokenTree::Ident(module), Some(TokenTree::Ident(tests)), _)
                if module == "mod" && tests == "tests" =>
            {
                at += 2;
            }
            (TokenTree::Ident(name), Some(TokenTree::Punct(mark)), Some(TokenTree::Group(arguments)))
                if mark.as_char() == '!' && MACROS.iter().any(|known| name == known) =>
            {
                let text = message(arguments).unwrap_or_else(|| "{not a constant}".to_owned());
                found.push((Kind::Log, text));
                at += 2;
            }
            (TokenTree::Punct(mark), Some(TokenTree::Group(group)), _)
                if mark.as_char() == '#' && group.delimiter() == Delimiter::Bracket =>
            {
                let inner: Vec<_> = group.stream().into_iter().collect();
                if let [TokenTree::Ident(name), TokenTree::Group(arguments)] = &inner[..]
                    && name == "error"
                    && let Some(text) = arguments.stream().into_iter().next().as_ref().and_then(string)
                {
                    found.push((Kind::Error, text));
                }
                at += 1;
            }
            (TokenTree::Group(group), ..) => texts(group.stream(), found),
            _ => {}
        }
        at += 1;
    }
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let is_tested =
            ["tests", "tests.rs", "simulation", "target", "build", "node_modules"].contains(&&*name);
        if is_tested || name.ends_with("_tests.rs") {
            continue;
        }
        if path.is_dir() {
            sources(&path, found);
        } else if name.ends_with(".rs") {
            found.push(path);
        }
    }
}

/// How many texts there are, and the faults, each with the line that its text begins in.
fn faults_of(source: &str) -> (usize, Vec<(usize, String)>) {
    let mut found = Vec::new();
    texts(source.parse().unwrap(), &mut found);
    let line_of = |text: &str| {
        let begins: String = text.chars().take(30).take_while(|c| !matches!(c, '"' | '\\')).collect();
        source.find(&begins).map_or(0, |at| source[..at].matches('\n').count() + 1)
    };
    let faulty = found.iter().flat_map(|(kind, text)| {
        let line = line_of(text);
        faults(*kind, text).into_iter().map(move |fault| (line, format!("{fault}: {kind:?} {text:?}")))
    });
    (found.len(), faulty.collect())
}

#[test]
fn log_messages_and_errors_are_constant_and_in_plain_words() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let (mut files, mut count, mut all) = (Vec::new(), 0, Vec::new());
    FOLDERS.iter().for_each(|folder| sources(&root.join(folder), &mut files));
    for file in &files {
        let (texts, found) = faults_of(&std::fs::read_to_string(file).unwrap());
        count += texts;
        let name = file.strip_prefix(root).unwrap().display().to_string();
        all.extend(found.into_iter().map(|(line, fault)| format!("{name}:{line}: {fault}")));
    }
    println!("{count} log messages and errors in {} files, {} faults", files.len(), all.len());
    assert!(count > 250, "they were not found: {count}");
    assert!(all.is_empty(), "{}", all.join("\n"));
}

#[test]
fn three_planted_faults_are_found() {
    let source = r#"
        #[derive(Debug, thiserror::Error)]
        enum Broken {
            #[error("The stream {0} is away")]
            Away(String),
            #[error("the stream is fine")]
            Fine,
        }
        fn log(error: &str) {
            warn!("cannot write: {error}");
            info!(error, "KV unavailable; retrying");
            info!("the session begins anew");
        }
    "#;
    let (count, found) = faults_of(source);
    let lines: Vec<_> = found.iter().map(|(line, _)| *line).collect();
    assert_eq!((count, &lines[..]), (5, &[4, 10, 12][..]), "{found:#?}");
    assert_eq!(faults(Kind::Help, "publish one event.").len(), 2);
    assert_eq!(faults(Kind::Help, "Publish one event").len(), 0);
}

/// The help of a command and of all its subcommands: each with the words that ask for it.
fn help(program: &Path, words: &[String], all: &mut Vec<(String, String)>) {
    let output = Command::new(program).args(words).arg("--help").output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let commands =
        text.split("\nCommands:\n").nth(1).unwrap_or_default().split("\n\n").next().unwrap_or_default();
    let names = commands.lines().filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    for name in names.filter(|name| !name.is_empty() && *name != "help") {
        help(program, &[words, &[name.to_owned()]].concat(), all);
    }
    all.push((words.join(" "), text));
}

#[test]
fn the_help_of_every_command_is_in_plain_words() {
    let program =
        std::env::var_os("TASKPIPELINE_BIN").expect("TASKPIPELINE_BIN is not set: use `cargo xtask test`");
    let mut all = Vec::new();
    help(Path::new(&program), &[], &mut all);
    let (mut lines, mut wrong) = (0, Vec::new());
    for (command, text) in &all {
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            // An option or a command, then what it does.
            let described = line.trim().rsplit("  ").next().unwrap_or_default();
            let described = described.split(" [default").next().unwrap_or_default();
            lines += 1;
            let banned = faults(Kind::Error, &described.to_lowercase());
            wrong.extend(
                banned.into_iter().map(|fault| format!("taskpipeline {command} --help: {fault}: {line:?}")),
            );
        }
        let about = text.lines().next().unwrap_or_default();
        let faults = faults(Kind::Help, about);
        wrong.extend(faults.into_iter().map(|fault| format!("taskpipeline {command}: {fault}: {about:?}")));
    }
    println!("{lines} lines of help of {} commands, {} faults", all.len(), wrong.len());
    assert!(all.len() > 8, "the commands were not found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
