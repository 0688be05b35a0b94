//! Bounds on what a chat template may cost. A template comes with a checkpoint
//! from anywhere, and Jinja lets one line build a text of any length:
//! `{{ 'x' * 100000000 }}`, or `~` in a loop. minijinja counts steps only, so
//! before a template runs, every instruction that reads or makes text is put
//! behind one that asks an allowance first. What no template of a chat needs
//! (calls with unpacked arguments, a namespace within another) is refused.

mod allowance;
mod rewrite;
mod source;

use minijinja::machinery::{eval, get_compiled_template, make_string_output};
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value};
use std::collections::BTreeMap;

/// Name under which the one template is kept.
const NAME: &str = "chat";
/// Deep nesting is compiled by deep recursion; pages that it does not reach take no memory.
const COMPILER_STACK: usize = 256 << 20;
/// Macros within macros.
const RECURSION: usize = 200;

/// Compiles `source` into `environment`, which then renders this template only.
///
/// # Errors
/// It is no Jinja, or its text alone shows that it is no chat template.
pub(super) fn compile(
    environment: &mut Environment<'static>,
    syntax: SyntaxConfig,
    source: String,
) -> Result<(), Error> {
    source::check(&source, syntax.clone())?;
    environment.set_syntax(syntax);
    environment.set_recursion_limit(RECURSION);
    // They print all that there is.
    environment.remove_global("debug");
    environment.set_formatter(allowance::write);
    for (name, guard) in allowance::GUARDS {
        environment.add_global(*name, Value::from_object(*guard));
    }
    let compile = || environment.add_template_owned(NAME, source);
    let compiled = std::thread::scope(|scope| {
        std::thread::Builder::new()
            .stack_size(COMPILER_STACK)
            .spawn_scoped(scope, compile)
            .map(|thread| thread.join())
    });
    match compiled {
        Ok(Ok(compiled)) => compiled,
        Ok(Err(panic)) => std::panic::resume_unwind(panic),
        Err(error) => Err(Error::new(
            ErrorKind::InvalidOperation,
            format!("no thread to compile it: {error}"),
        )),
    }
}

/// Renders the compiled template; `context` holds `bytes` of text.
///
/// # Errors
/// The template raised an error, or wanted more than its allowance.
pub(super) fn render(
    environment: &Environment<'_>,
    context: impl Into<Value>,
    bytes: usize,
) -> Result<String, Error> {
    let template = environment.get_template(NAME)?;
    let compiled = get_compiled_template(&template);
    let instructions = rewrite::guarded(&compiled.instructions)?;
    let blocks = compiled
        .blocks
        .iter()
        .map(|(name, block)| Ok((*name, rewrite::guarded(block)?)))
        .collect::<Result<BTreeMap<_, _>, Error>>()?;
    let _allowance = allowance::begin(bytes);
    let mut text = String::new();
    let mut output = make_string_output(&mut text);
    eval(
        environment,
        &instructions,
        context.into(),
        &blocks,
        &mut output,
        AutoEscape::None,
    )?;
    drop(output);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use minijinja::value::Serde;
    use serde_json::json;

    fn context() -> Value {
        Value::from(Serde(json!({
            "messages": [
                {"role": "system", "content": " Be kind. "},
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Täglich\nwas?"}]},
                {"role": "assistant", "content": "<think>a</think> b,c", "tool_calls": [{"name": "f", "arguments": {"x": [1, 2.5, null]}}]},
            ],
            "number": 7,
        })))
    }

    fn environment(source: &str) -> Result<Environment<'static>, Error> {
        let mut environment = Environment::new();
        environment.set_fuel(Some(2_000_000));
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        compile(&mut environment, SyntaxConfig::default(), source.to_owned())?;
        Ok(environment)
    }

    #[test]
    fn a_guarded_template_gives_what_it_gives_without_guards() {
        for source in [
            "{% for m in messages %}{{ loop.index }}{{ m.role ~ ': ' ~ m['content'] }}{{ '-' * 3 }}{% endfor %}",
            "{% for a in range(2) recursive %}{{ a }}{{ loop([]) }}{% else %}none{% endfor %}",
            "{{ messages[1:]|length }}{{ messages[0].content[::-1] }}{{ messages[0].content[1:3] }}{{ messages[-1].role[0] }}",
            "{% macro show(x, y='z') %}[{{ x }}{{ y }}{% if caller %}{{ caller() }}{% endif %}]{% endmacro %}{{ show(1) }}{{ show(x=2, y=3) }}{% call show(4) %}c{% endcall %}",
            "{% macro down(n) %}{{ n }}{% if n > 0 %}{{ down(n - 1) }}{% endif %}{% endmacro %}{{ down(9) }}",
            "{% set ns = namespace(x=[], t='') %}{% for m in messages %}{% set ns.x = ns.x + [m.role] %}{% set ns.t = ns.t ~ m.role %}{% endfor %}{{ ns.x|join(', ') }}{{ ns.t }}",
            "{% set big %}{% for i in range(3) %}raw {{ i }}{% endfor %}{% endset %}{{ big|upper|replace('RAW', 'x') }}{% set a, b = (1, 2) %}{{ a + b }}",
            "{{ messages[2].content.split('</think>')[-1].strip() }}{{ 'a b'.split() }}{{ ','.join(['a', 'b']) }}{{ 'x{}y'.format(3) }}{{ '%5s|' | format('ab') }}",
            "{{ messages[2].tool_calls|tojson }}{{ messages[2].tool_calls[0].arguments|tojson(indent=2) }}{{ 'a\nb'|indent(3) }}",
            "{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}{{ messages[0]|dictsort }}{{ messages[0].get('nothing', 5) }}",
            "{{ messages|selectattr('role', 'equalto', 'user')|map(attribute='content')|list }}{{ messages|map(attribute='role')|map('upper')|join }}{{ ['a b', 'c']|map('replace', 'a', 'x')|list }}",
            "{{ [1, 2, 3, 4, 5]|batch(2, 0)|list }}{{ [3, 1]|sort }}{{ [1, 1]|unique|list }}{{ [1, 2]|slice(2)|list }}{{ {'a': 1}|items }}{{ 'ab'|list }}",
            "{{ 'user' in messages[1].role and number is defined and nothing is not defined }}{{ 1 < number <= 7 }}{{ number is divisibleby 7 }}{{ 'x' if number == 8 else number ** 2 // 3 % 5 }}",
            "{% filter upper %}a{{ number }}{% endfilter %}{% autoescape true %}<{{ '<' }}>{% endautoescape %}{{ [1, [2, (3, {'a': 'b'})]] }}{{ not number }}{{ -number }}",
            "{% if messages[0].role == 'assistant' %}a{% elif number != 7 %}b{% else %}c{% endif %}{% with x = 5 %}{{ x }}{% endwith %}{% block b %}in{% endblock %}{{ range(5)|list }}{{ range(1, 9, 3)|last }}",
            "{% for i in range(6) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif %}{{ i }}{{ loop.cycle('a', 'b') }}{% endfor %}{{ messages|length * 2 }}{{ [0] * 3 }}{{ 'a' + 'b' }}",
            "{{ nothing }}{{ messages[9] }}{{ messages[0].nothing }}{{ nothing.deeper }}",
            "{{ messages|map('nothing') }}",
        ] {
            let guarded =
                environment(source).and_then(|environment| render(&environment, context(), 10_000));
            let mut plain = Environment::new();
            plain.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
            let wanted = plain.render_named_str(NAME, source, context());
            match (guarded, wanted) {
                (Ok(guarded), Ok(wanted)) => assert_eq!(guarded, wanted, "{source}"),
                (Err(guarded), Err(wanted)) => {
                    assert_eq!(
                        (guarded.kind(), guarded.line()),
                        (wanted.kind(), wanted.line()),
                        "{source}"
                    );
                }
                (guarded, wanted) => panic!("{source}: {guarded:?}, not {wanted:?}"),
            }
        }
    }

    /// Templates that build more than any memory holds, one way each.
    const HOSTILE: &[&str] = &[
        "{{ 'x' * 100000000 }}",
        "{{ ('x' * 1000 * 1000 * 100) ~ 'y' }}",
        "{% set n = 100000000 %}{{ 'x' * n }}",
        "{% set n = 100000000 %}{{ ([1] * n)|list }}",
        "{% set n = 100000000 %}{{ [1] * n ~ '' }}",
        "{% set ns = namespace(x='xx') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x|length }}",
        "{% set ns = namespace(x='xx') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x|length }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x|length }}",
        "{% set ns = namespace(x='xx') %}{% for i in range(60) %}{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
        "{% set ns = namespace(x='xx') %}{% for i in range(60) %}{% set ns.x = ns.x|replace('x', ns.x) %}{% endfor %}",
        "{% set ns = namespace(x='xx') %}{% for i in range(60) %}{% set ns.x = ns.x.replace('x', ns.x) %}{% endfor %}",
        "{% set ns = namespace(x='xx') %}{% for i in range(60) %}{% set ns.x = ns.x.join([ns.x, ns.x, ns.x]) %}{% endfor %}",
        "{% set n = 1000000 %}{% set x = 'x' * n %}{{ range(100000)|join(x) }}",
        "{% set n = 1000000 %}{% set x = 'x' * n %}{{ range(100000)|map('replace', '1', x)|list }}",
        "{% set n = 1000000 %}{% set x = 'x' * n %}{{ ['{0}' * 1000]|map('format', x)|list }}",
        "{{ 'a\nb'|indent(1000000000) }}",
        "{{ ['a\nb']|map('indent', width=1000000000)|list }}",
        "{{ '%1000000000d'|format(1) }}",
        "{{ '%*d'|format(1000000000, 1) }}",
        "{{ '{:>1000000000}'.format(1) }}",
        "{{ '{:>{}}'.format(1, 1000000000) }}",
        "{{ '{:.1000000000f}'.format(1.5) }}",
        "{{ messages|tojson(indent=1000000000) }}",
        "{{ [1]|batch(1000000000, 0)|list }}",
        "{{ [1]|slice(1000000000, 0)|list }}",
        "{% for a in range(100000) %}{% for b in range(100000) %}many words in every turn of the loop, and then some more of them{% endfor %}{% endfor %}",
        "{% set ns = namespace(x=[]) %}{% for i in range(100000) %}{% set ns.x = ns.x + [range(100000)|list] %}{% endfor %}",
        "{% set n = 1000000 %}{% set x = 'x' * n %}{% for i in range(100000) %}{% if x ~ 'y' == x %}{% endif %}{% endfor %}",
        "{% set n = 1000000 %}{% set x = 'x' * n %}{% for i in range(100000) %}{% if 'y' in x %}{% endif %}{% endfor %}",
        "{% set n = 1000000 %}{% set x = 'x' * n %}{% for i in range(100000) %}{% if x is eq('y') %}{% endif %}{{ x[9] }}{% endfor %}",
        "{% set n = 10000000 %}{% set x = 'x' * n %}{% for c in x %}{% endfor %}",
        "{% set n = 10000000 %}{% set x = 'x' * n %}{% set a, b = x %}",
        "{% set n = 10000000 %}{% set x = 'x' * n %}{{ x|list|length }}{{ x.split('')|length }}",
        "{% set ns = namespace(x=[]) %}{% for i in range(100000) %}{% set ns.x = [ns.x] %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(100000) %}{% set ns.x = ns.x|batch(1) %}{% endfor %}",
        "{% set ns = namespace(x=['a']) %}{% for i in range(100000) %}{% set ns.x = ns.x|map('upper') %}{% endfor %}{{ ns.x }}{% for i in range(100000) %}{% set ns.x = {'a': ns.x} %}{% endfor %}",
        "{% set hold = namespace(x=1) %}{% for i in range(100000) %}{% set one = namespace() %}{% set one.x = hold.x %}{% set hold.x = one %}{% endfor %}",
        "{% set ns = namespace() %}{% set ns.x = [ns] %}{{ ns }}",
        "{% macro deep(n) %}{{ deep(n + 1) }}{% endmacro %}{{ deep(0) }}",
        "{{ dict(*range(100000)) }}",
        "{{ strftime_now('%Y' * 1000 * 1000 * 100) }}",
    ];

    #[test]
    fn no_template_builds_more_than_its_allowance() {
        for source in HOSTILE {
            let rendered =
                environment(source).and_then(|environment| render(&environment, context(), 100));
            assert!(rendered.is_err(), "{source}");
        }
    }

    #[test]
    fn a_template_without_an_end_is_no_trouble_for_the_compiler() {
        for source in [
            format!("{{{{ 1{} }}}}", "+1".repeat(60_000)),
            format!("{{{{ x{} }}}}", "|upper".repeat(20_000)),
            format!("{{{{ x{} }}}}", "[0]".repeat(40_000)),
            format!("{{{{ {}1{} }}}}", "(".repeat(60_000), ")".repeat(60_000)),
            format!("{{% if a %}}{}{{% endif %}}", "{% elif a %}".repeat(9_000)),
            format!(
                "{}{}",
                "{% if a %}".repeat(5_000),
                "{% endif %}".repeat(5_000)
            ),
            "{{ x }}".repeat(30_000),
        ] {
            // Either is right; what matters is that it ends.
            let _ = environment(&source).map(|environment| render(&environment, context(), 100));
        }
    }

    #[test]
    fn a_long_conversation_has_room_for_every_usual_step() {
        let source = "{% set ns = namespace(text='', seen=[]) %}{% for m in messages %}{% set content = m.content | trim %}\
            {% if content is string and '<image>' not in content and content != '' %}{% set ns.seen = ns.seen + [m] %}\
            {{ '<|' ~ m.role ~ '|>\n' + content ~ '</s>' }}{% endif %}{% if loop.last and messages | length > 3 %}!{% endif %}{% endfor %}";
        let messages: Vec<_> = (0..2000)
            .map(|turn| json!({"role": "user", "content": format!("{turn} {}", "word ".repeat(100))}))
            .collect();
        let context = Value::from(Serde(json!({ "messages": messages })));
        let environment = environment(source).unwrap();
        let text = render(&environment, context, 2000 * 500).unwrap();
        assert_eq!(text.matches("</s>").count(), 2000);
    }
}
