//! From text to nodes.

use std::iter::Peekable;
use std::str::Chars;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{Node, Operand, Pipeline};

/// Deeper nesting is nobody's, and would end at the stack's end.
const MAX_DEPTH: usize = 64;

#[derive(Clone, Debug, PartialEq)]
enum Piece {
    Text(String),
    Action(Vec<Token>),
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    /// `.A.B`; `.` is empty. `attached` to what is before it, as in `$x.A` and `(…).A`.
    Dotted {
        fields: Vec<String>,
        attached: bool,
    },
    Variable(String),
    Literal(Value),
    Symbol(&'static str),
}

pub(super) fn parse(text: &str) -> Result<Vec<Node>> {
    let mut parser = Parser { pieces: pieces(text)?.into_iter().peekable(), depth: 0 };
    let (nodes, end) = parser.nodes()?;
    match end {
        None => Ok(nodes),
        Some((word, _)) => bail!("unexpected {{{{{word}}}}}"),
    }
}

/// Cuts at `{{` and `}}`; `{{-` and `-}}` take the white space before and after away.
fn pieces(text: &str) -> Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut rest = text;
    let mut trim = false;
    while let Some((before, after)) = rest.split_once("{{") {
        let (left, after) = match after.strip_prefix('-') {
            Some(more) if more.starts_with(char::is_whitespace) => (true, more),
            _ => (false, after),
        };
        let before = if trim { before.trim_start() } else { before };
        let before = if left { before.trim_end() } else { before };
        if !before.is_empty() {
            pieces.push(Piece::Text(before.to_owned()));
        }
        if let Some(comment) = after.trim_start().strip_prefix("/*") {
            let (_, end) = comment.split_once("*/").context("unclosed comment")?;
            let end = end.trim_start();
            trim = end.starts_with("-}}");
            rest = end.trim_start_matches('-').strip_prefix("}}").context("unclosed comment")?;
            continue;
        }
        let mut chars = Cursor(after.chars());
        let tokens = action(&mut chars, &mut trim)?;
        ensure!(!tokens.is_empty(), "missing value for command");
        pieces.push(Piece::Action(tokens));
        rest = chars.0.as_str();
    }
    let rest = if trim { rest.trim_start() } else { rest };
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest.to_owned()));
    }
    Ok(pieces)
}

/// Characters, of which those ahead can be seen.
struct Cursor<'a>(Chars<'a>);

impl Iterator for Cursor<'_> {
    type Item = char;

    fn next(&mut self) -> Option<char> {
        self.0.next()
    }
}

impl Cursor<'_> {
    fn peek(&self) -> Option<char> {
        self.0.clone().next()
    }

    fn next_if(&mut self, wanted: impl Fn(char) -> bool) -> Option<char> {
        let next = self.peek().filter(|c| wanted(*c))?;
        self.next();
        Some(next)
    }
}

/// The tokens up to `}}`.
fn action(chars: &mut Cursor, trim: &mut bool) -> Result<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut space = true;
    loop {
        let c = chars.peek().context("unclosed action")?;
        let attached = !std::mem::replace(&mut space, false);
        let token = match c {
            c if c.is_whitespace() => {
                chars.next();
                space = true;
                continue;
            }
            '}' => {
                chars.next();
                ensure!(chars.next() == Some('}'), "unexpected \"}}\" in command");
                *trim = false;
                return Ok(tokens);
            }
            '-' if !attached && chars.0.as_str().starts_with("-}}") => {
                chars.nth(2);
                *trim = true;
                return Ok(tokens);
            }
            '"' | '`' | '\'' => literal_text(chars)?,
            '.' if chars.0.clone().nth(1).is_some_and(|c| c.is_ascii_digit()) => number(chars)?,
            '.' => {
                let before = matches!(tokens.last(), Some(Token::Variable(_) | Token::Symbol(")")));
                dotted(chars, attached && before)?
            }
            '$' => {
                chars.next();
                Token::Variable(word(chars))
            }
            '0'..='9' | '-' | '+' => number(chars)?,
            '(' | ')' | '|' | ',' | '=' | ':' => symbol(chars)?,
            c if c.is_alphabetic() || c == '_' => match word(chars).as_str() {
                "true" => Token::Literal(Value::Bool(true)),
                "false" => Token::Literal(Value::Bool(false)),
                "nil" => Token::Literal(Value::Null),
                other => Token::Word(other.to_owned()),
            },
            c => bail!("unexpected {c:?} in command"),
        };
        tokens.push(token);
    }
}

fn word(chars: &mut Cursor) -> String {
    let mut word = String::new();
    while let Some(c) = chars.next_if(|c| c.is_alphanumeric() || c == '_') {
        word.push(c);
    }
    word
}

fn symbol(chars: &mut Cursor) -> Result<Token> {
    Ok(Token::Symbol(match chars.next() {
        Some('(') => "(",
        Some(')') => ")",
        Some('|') => "|",
        Some(',') => ",",
        Some('=') => "=",
        _ => {
            ensure!(chars.next() == Some('='), "expected :=");
            ":="
        }
    }))
}

fn dotted(chars: &mut Cursor, attached: bool) -> Result<Token> {
    let mut fields = Vec::new();
    while chars.next_if(|c| c == '.').is_some() {
        let field = word(chars);
        if field.is_empty() {
            ensure!(fields.is_empty(), "unexpected <.> after a field");
            break;
        }
        fields.push(field);
    }
    Ok(Token::Dotted { fields, attached })
}

fn number(chars: &mut Cursor) -> Result<Token> {
    let mut text = String::new();
    while let Some(c) = chars.next_if(|c| c.is_ascii_alphanumeric() || "+-._".contains(c)) {
        text.push(c);
    }
    let whole = text.strip_prefix('+').unwrap_or(&text);
    let value = match whole.parse::<i64>() {
        Ok(number) => number.into(),
        Err(_) => match whole.parse::<f64>() {
            Ok(number) if number.is_finite() => number.into(),
            _ => bail!("bad number syntax: {text:?}"),
        },
    };
    Ok(Token::Literal(value))
}

fn literal_text(chars: &mut Cursor) -> Result<Token> {
    let quote = chars.next().unwrap_or_default();
    let mut text = String::new();
    loop {
        match chars.next().context("unterminated quoted string")? {
            c if c == quote => break,
            '\\' if quote != '`' => text.push(match chars.next() {
                Some('n') => '\n',
                Some('t') => '\t',
                Some('r') => '\r',
                Some(c @ ('\\' | '"' | '\'')) => c,
                other => bail!("unknown escape \\{}", other.unwrap_or(' ')),
            }),
            c => text.push(c),
        }
    }
    if quote == '\'' {
        // A rune: a number in Go.
        let mut runes = text.chars();
        return match (runes.next(), runes.next()) {
            (Some(rune), None) => Ok(Token::Literal(u32::from(rune).into())),
            _ => bail!("malformed character constant: '{text}' (a text is in double quotes)"),
        };
    }
    Ok(Token::Literal(Value::String(text)))
}

/// The word that ended a list of nodes, and what stood behind it.
type End = Option<(String, Vec<Token>)>;

struct Parser {
    pieces: Peekable<std::vec::IntoIter<Piece>>,
    depth: usize,
}

impl Parser {
    /// Up to `end` or `else`, or the text's end.
    fn nodes(&mut self) -> Result<(Vec<Node>, End)> {
        self.depth += 1;
        ensure!(self.depth < MAX_DEPTH, "the template is nested too deeply");
        let mut nodes = Vec::new();
        let end = loop {
            let tokens = match self.pieces.next() {
                None => break None,
                Some(Piece::Text(text)) => {
                    nodes.push(Node::Text(text));
                    continue;
                }
                Some(Piece::Action(tokens)) => tokens,
            };
            let word = match &tokens[0] {
                Token::Word(word) => word.as_str(),
                _ => "",
            };
            match word {
                "end" | "else" => break Some((word.to_owned(), tokens[1..].to_vec())),
                "if" => nodes.push(self.condition(&tokens[1..])?),
                "with" => {
                    let value = pipeline(&tokens[1..])?;
                    let (body, otherwise) = self.body(word)?;
                    nodes.push(Node::With { value, body, otherwise });
                }
                "range" => {
                    let over = pipeline(&tokens[1..])?;
                    let (body, otherwise) = self.body(word)?;
                    nodes.push(Node::Range { over, body, otherwise });
                }
                "define" | "template" | "block" | "break" | "continue" => {
                    bail!("{{{{{word}}}}} is not supported")
                }
                _ => nodes.push(Node::Output(pipeline(&tokens)?)),
            }
        };
        self.depth -= 1;
        Ok((nodes, end))
    }

    /// What follows `with` and `range`, and what follows their `else`.
    fn body(&mut self, of: &str) -> Result<(Vec<Node>, Vec<Node>)> {
        let (body, end) = self.nodes()?;
        match end {
            Some((word, rest)) if rest.is_empty() && word == "end" => Ok((body, Vec::new())),
            Some((_, rest)) if rest.is_empty() => match self.nodes()? {
                (otherwise, Some((word, _))) if word == "end" => Ok((body, otherwise)),
                _ => bail!("{{{{{of}}}}} without {{{{end}}}}"),
            },
            _ => bail!("{{{{{of}}}}} without {{{{end}}}}"),
        }
    }

    fn condition(&mut self, tokens: &[Token]) -> Result<Node> {
        let mut arms = Vec::new();
        let mut tokens = tokens.to_vec();
        loop {
            let condition = pipeline(&tokens)?;
            let (body, end) = self.nodes()?;
            arms.push((condition, body));
            let (word, rest) = end.context("{{if}} without {{end}}")?;
            match rest.split_first() {
                None if word == "end" => return Ok(Node::If { arms, otherwise: Vec::new() }),
                None => match self.nodes()? {
                    (otherwise, Some((word, _))) if word == "end" => {
                        return Ok(Node::If { arms, otherwise });
                    }
                    _ => bail!("{{{{if}}}} without {{{{end}}}}"),
                },
                Some((Token::Word(word), more)) if word == "if" => tokens = more.to_vec(),
                Some(_) => bail!("unexpected words after {{{{{word}}}}}"),
            }
        }
    }
}

/// `$x := a b | c`
fn pipeline(tokens: &[Token]) -> Result<Pipeline> {
    let mut tokens = tokens;
    let mut whole = Pipeline::default();
    let sign = |token: &Token| matches!(token, Token::Symbol(":=" | "="));
    if let Some(at) = tokens.iter().position(sign) {
        whole.assign = tokens[at] == Token::Symbol("=");
        for token in &tokens[..at] {
            match token {
                Token::Variable(name) if !name.is_empty() => whole.variables.push(name.clone()),
                Token::Symbol(",") => {}
                _ => bail!("only variables can be set"),
            }
        }
        ensure!(matches!(whole.variables.len(), 1 | 2), "one or two variables can be set");
        tokens = &tokens[at + 1..];
    }
    whole.commands = commands(&mut tokens, 0)?;
    ensure!(tokens.is_empty(), "unexpected right paren");
    Ok(whole)
}

/// Up to a right parenthesis, or the end.
fn commands(tokens: &mut &[Token], depth: usize) -> Result<Vec<Vec<Operand>>> {
    ensure!(depth < MAX_DEPTH, "the template is nested too deeply");
    let mut all = vec![Vec::new()];
    while let Some((token, rest)) = tokens.split_first() {
        if *token == Token::Symbol(")") {
            break;
        }
        *tokens = rest;
        let command: &mut Vec<Operand> = all.last_mut().context("a command")?;
        match token {
            Token::Symbol("|") => {
                ensure!(!command.is_empty(), "missing value for command");
                all.push(Vec::new());
            }
            Token::Symbol("(") => {
                let commands = commands(tokens, depth + 1)?;
                ensure!(tokens.first() == Some(&Token::Symbol(")")), "unclosed left paren");
                *tokens = &tokens[1..];
                command.push(Operand::Nested(Pipeline { commands, ..Pipeline::default() }));
            }
            Token::Symbol(symbol) => bail!("unexpected {symbol:?}"),
            Token::Dotted { fields, attached: true } if !fields.is_empty() => {
                let of = command.pop().context("a field of nothing")?;
                command.push(Operand::Fields(Box::new(of), fields.clone()));
            }
            Token::Dotted { fields, .. } if fields.is_empty() => command.push(Operand::Dot),
            Token::Dotted { fields, .. } => {
                command.push(Operand::Fields(Box::new(Operand::Dot), fields.clone()));
            }
            Token::Variable(name) => command.push(Operand::Variable(name.clone())),
            Token::Literal(value) => command.push(Operand::Literal(value.clone())),
            Token::Word(name) => {
                ensure!(super::functions::exists(name), "function {name:?} not defined");
                command.push(Operand::Function(name.clone()));
            }
        }
    }
    ensure!(all.last().is_some_and(|command| !command.is_empty()), "missing value for command");
    Ok(all)
}
