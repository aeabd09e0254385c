# Bash completion of nibbled. The options are those of `nibbled --help`; a test compares them.

_nibbled() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]}
    COMPREPLY=()
    if [ "$before" = --config ]; then
        mapfile -t COMPREPLY < <(compgen -f -- "$word")
    else
        mapfile -t COMPREPLY < <(compgen -W "--config --check --plan --struck --print-config --print-fields --version --help" -- "$word")
    fi
}
complete -o filenames -F _nibbled nibbled
