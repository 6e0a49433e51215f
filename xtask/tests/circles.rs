//! No modules depend on each other in a circle: in each folder of each crate, the modules side by side (each with all that is
//! beneath it) can be put into an order in which each needs only those before it. So a module can be read without those that
//! need it. A child may use its parent, of which it is a part.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// A module by its path from the root of its crate, which has none.
type Module = Vec<String>;

/// The modules of a crate, and which others each names.
#[derive(Default)]
struct Crate {
    modules: BTreeMap<Module, BTreeSet<Module>>,
}

/// The parts of a module's source that count.
struct Source {
    /// The modules in files of their own, but for those of tests.
    children: Vec<String>,
    /// The paths that begin with `crate`, `self` or `super`.
    paths: Vec<Vec<String>>,
}

/// The path that begins at this token, with those that a group in braces adds to it, and how many tokens it has.
fn path(tokens: &[TokenTree], before: &[String], found: &mut Vec<Vec<String>>) -> usize {
    let (mut path, mut next) = (before.to_vec(), 0);
    loop {
        match tokens.get(next) {
            Some(TokenTree::Ident(name)) => path.push(name.to_string()),
            Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace && next > 0 => {
                let inner: Vec<_> = group.stream().into_iter().collect();
                let is_comma =
                    |token: &TokenTree| matches!(token, TokenTree::Punct(mark) if mark.as_char() == ',');
                for part in inner.split(is_comma).filter(|part| !part.is_empty()) {
                    self::path(part, &path, found);
                }
                return next + 1;
            }
            _ => break,
        }
        next += 1;
        let is_colon =
            |at: usize| matches!(tokens.get(at), Some(TokenTree::Punct(mark)) if mark.as_char() == ':');
        if !(is_colon(next) && is_colon(next + 1)) {
            break;
        }
        next += 2;
    }
    found.push(path);
    next.max(1)
}

fn read(tokens: TokenStream, source: &mut Source) {
    let tokens: Vec<_> = tokens.into_iter().collect();
    let mut at = 0;
    let mut is_test = false;
    while let Some(token) = tokens.get(at) {
        match token {
            TokenTree::Group(group) => {
                let is_attribute = matches!(at.checked_sub(1).map(|before| &tokens[before]), Some(TokenTree::Punct(mark)) if mark.as_char() == '#');
                if is_attribute {
                    is_test |= group.stream().to_string().replace(' ', "") == "cfg(test)";
                } else {
                    read(group.stream(), source);
                }
                at += 1;
            }
            TokenTree::Ident(word) if word == "mod" => {
                let name = tokens.get(at + 1).map(ToString::to_string).unwrap_or_default();
                let is_file = matches!(tokens.get(at + 2), Some(TokenTree::Punct(_)));
                if is_file && !is_test {
                    source.children.push(name);
                }
                // What a test needs binds nobody.
                at += if is_file || is_test { 3 } else { 2 };
                is_test = false;
            }
            TokenTree::Ident(word) if word == "crate" || word == "self" || word == "super" => {
                at += path(&tokens[at..], &[], &mut source.paths);
                is_test = false;
            }
            TokenTree::Ident(word) => {
                let is_visibility = word == "pub";
                is_test &= is_visibility;
                at += 1;
            }
            _ => at += 1,
        }
    }
}

/// The module that a path leads to, as far as modules go.
fn resolve(path: &[String], from: &Module, modules: &BTreeMap<Module, BTreeSet<Module>>) -> Module {
    let mut at = match path[0].as_str() {
        "crate" => Module::new(),
        _ => from.clone(),
    };
    let mut rest = path;
    while let Some((first, others)) = rest.split_first() {
        match first.as_str() {
            "super" => {
                at.pop();
            }
            "crate" | "self" => {}
            name => {
                at.push(name.to_owned());
                if !modules.contains_key(&at) {
                    at.pop();
                    break;
                }
            }
        }
        rest = others;
    }
    at
}

impl Crate {
    fn of(read_source: &impl Fn(&Module) -> Option<String>) -> Self {
        let mut sources = BTreeMap::new();
        let mut left = vec![Module::new()];
        while let Some(module) = left.pop() {
            let text = read_source(&module).unwrap_or_else(|| panic!("no source of {module:?}"));
            let mut source = Source { children: Vec::new(), paths: Vec::new() };
            read(text.parse().unwrap(), &mut source);
            for child in &source.children {
                left.push(module.iter().chain([child]).cloned().collect());
            }
            sources.insert(module, source);
        }
        let mut modules: BTreeMap<Module, BTreeSet<Module>> =
            sources.keys().map(|module| (module.clone(), BTreeSet::new())).collect();
        for (module, source) in &sources {
            let named: BTreeSet<_> = source
                .paths
                .iter()
                .map(|path| resolve(path, module, &modules))
                .filter(|to| to != module)
                .collect();
            modules.insert(module.clone(), named);
        }
        Self { modules }
    }

    /// The circles, each as the modules side by side that it leads through.
    fn circles(&self) -> Vec<String> {
        let mut circles = Vec::new();
        for parent in self.modules.keys() {
            let depth = parent.len();
            let mut needs: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
            for (from, named) in &self.modules {
                for to in named {
                    let are_beneath = from.len() > depth
                        && to.len() > depth
                        && from.starts_with(parent)
                        && to.starts_with(parent);
                    if are_beneath && from[depth] != to[depth] {
                        needs.entry(&from[depth]).or_default().insert(&to[depth]);
                    }
                }
            }
            // Whoever needs nobody that is left, or is needed by nobody, can be taken away; circles remain, and what is
            // between two of them.
            loop {
                let left: BTreeSet<_> = needs.keys().copied().collect();
                let needed: BTreeSet<_> = needs.values().flatten().copied().collect();
                let before = needs.len();
                needs.retain(|name, named| {
                    named.retain(|name| left.contains(name));
                    !named.is_empty() && needed.contains(name)
                });
                if needs.len() == before {
                    break;
                }
            }
            if !needs.is_empty() {
                circles.push(format!("in {}: {needs:?}", parent.join("::")));
            }
        }
        circles
    }

    fn edges(&self) -> usize {
        self.modules.values().map(BTreeSet::len).sum()
    }
}

/// The source of a module of the crate with this root file.
fn on_disk(root: &Path) -> impl Fn(&Module) -> Option<String> {
    let (root, folder) = (root.to_owned(), root.parent().unwrap().to_owned());
    move |module| {
        if module.is_empty() {
            return std::fs::read_to_string(&root).ok();
        }
        let at: PathBuf = folder.join(module.iter().collect::<PathBuf>());
        let file = at.with_extension("rs");
        std::fs::read_to_string(&file).or_else(|_| std::fs::read_to_string(at.join("mod.rs"))).ok()
    }
}

#[test]
fn no_modules_of_any_crate_depend_on_each_other_in_a_circle() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let manifest = std::fs::read_to_string(workspace.join("Cargo.toml")).unwrap();
    let members = manifest.lines().find_map(|line| line.strip_prefix("members = [")).unwrap();
    let members = members.trim_end_matches(']').split(',').map(|name| name.trim().trim_matches('"'));
    let (mut circles, mut counts) = (Vec::new(), [0, 0, 0]);
    for member in members {
        let source = workspace.join(member).join("src");
        for root in
            ["lib.rs", "main.rs"].map(|name| source.join(name)).into_iter().filter(|root| root.exists())
        {
            let found = Crate::of(&on_disk(&root));
            counts = [counts[0] + 1, counts[1] + found.modules.len(), counts[2] + found.edges()];
            circles.extend(found.circles().into_iter().map(|circle| format!("{}: {circle}", root.display())));
        }
    }
    println!(
        "{} crates, {} modules, {} dependencies between modules: {} circles",
        counts[0],
        counts[1],
        counts[2],
        circles.len()
    );
    assert!(counts[1] > 250 && counts[2] > 600, "the sources are not read: {counts:?}");
    assert!(circles.is_empty(), "modules depend on each other:\n{}", circles.join("\n"));
}

#[test]
fn a_circle_is_found_wherever_it_leads_through() {
    let of = |files: &[(&str, &str)]| {
        let source = |module: &Module| {
            let name = module.join("::");
            files.iter().find(|(path, _)| *path == name).map(|(_, text)| (*text).to_owned())
        };
        Crate::of(&source).circles()
    };
    let root = ("", "mod a; mod b;");
    assert_eq!(of(&[root, ("a", "use crate::b::B;"), ("b", "pub struct B;")]), Vec::<String>::new());
    assert_eq!(of(&[root, ("a", "use crate::b::B;"), ("b", "use super::a::{A, C};")]).len(), 1);
    assert_eq!(of(&[root, ("a", "use super::{b::B};"), ("b", "fn f() { g!(crate::a::A) }")]).len(), 1);
    // Through a child, whose parent is blamed.
    let deep =
        [root, ("a", "mod c;"), ("a::c", "use crate::b;"), ("b", "fn f() -> crate::a::c::C { loop {} }")];
    assert_eq!(of(&deep).len(), 1);
    let sides = [
        ("", "mod a;"),
        ("a", "mod c; mod d;"),
        ("a::c", "use super::d::D;"),
        ("a::d", "use crate::a::c::C;"),
    ];
    assert_eq!(of(&sides).len(), 1);
    // A child and its parent are one, and what a test needs binds nobody.
    assert_eq!(of(&[("", "mod a; use self::a::A;"), ("a", "use crate::B;")]), Vec::<String>::new());
    let test = "pub struct B; #[cfg(test)] mod tests { use crate::a::A; } #[cfg(test)] mod more;";
    assert_eq!(of(&[root, ("a", "use crate::b::B;"), ("b", test)]), Vec::<String>::new());
}
