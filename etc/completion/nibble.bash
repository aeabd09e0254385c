# Bash completion of nibble. Commands, options and shapes are those of `nibble --help`; a test compares them.

_nibble_options() {
    case $1 in
    synth) echo "--seed --format --dense --vocab" ;;
    pack) echo "--dense --key --vocab" ;;
    plan) echo "--profile --device --all --dense --kv --context --slots --threads --memory-limit --mask --json" ;;
    arch) echo "--profile --mask --device" ;;
    selftest) echo "--row --device --shape --all" ;;
    bench) echo "--prompt --tokens --batch --rows --threads --device --shape --dense --kv --mask --memory-limit --format" ;;
    "bench serve") echo "--shape --dense --kv --socket --clients --rates --requests --beside --prompt --tokens --temperature --seed --json --plot --device --threads --slots --memory-limit --vocab" ;;
    chat) echo "--demo --socket --effort --system --max-tokens --no-color --quiet" ;;
    info) echo "--json --tensors" ;;
    verify) echo "--key" ;;
    keygen) echo "" ;;
    sign) echo "--key" ;;
    esac
}

_nibble_profiles() {
    local folder file
    for folder in "${NIBBLE_DATA:-}/profiles" etc/profiles /usr/share/nibbled/profiles /usr/local/share/nibbled/profiles; do
        [ -d "$folder" ] || continue
        for file in "$folder"/*.json; do
            file=${file##*/}
            echo "${file%.json}"
        done
        return
    done
}

_nibble() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} command=${COMP_WORDS[1]}
    local shapes="20b 120b 20b-slice small demo tiny nano"
    COMPREPLY=()
    [ "$COMP_CWORD" -gt 2 ] && [ "$command ${COMP_WORDS[2]}" = "bench serve" ] && command="bench serve"
    if [ "$COMP_CWORD" -eq 1 ]; then
        mapfile -t COMPREPLY < <(compgen -W "synth pack plan arch selftest bench chat info verify keygen sign --help --version" -- "$word")
        return
    fi
    case $before in
    --format)
        [ "$command" = synth ] && mapfile -t COMPREPLY < <(compgen -W "image hf" -- "$word")
        [ "$command" = bench ] && mapfile -t COMPREPLY < <(compgen -W "text json csv" -- "$word")
        return
        ;;
    --device) mapfile -t COMPREPLY < <(compgen -W "auto cpu gpu" -- "$word") && return ;;
    --shape) mapfile -t COMPREPLY < <(compgen -W "$shapes" -- "$word") && return ;;
    --dense) mapfile -t COMPREPLY < <(compgen -W "bf16 mxfp8" -- "$word") && return ;;
    --kv) mapfile -t COMPREPLY < <(compgen -W "bf16 fp8" -- "$word") && return ;;
    --effort) mapfile -t COMPREPLY < <(compgen -W "low medium high" -- "$word") && return ;;
    --profile) mapfile -t COMPREPLY < <(compgen -W "$(_nibble_profiles)" -- "$word") && return ;;
    --key | --vocab | --socket | --plot) mapfile -t COMPREPLY < <(compgen -f -- "$word") && return ;;
    --json) [ "$command" = "bench serve" ] && mapfile -t COMPREPLY < <(compgen -f -- "$word") && return ;;
    --clients | --rates | --requests | --beside | --temperature | --seed | --context | --slots | --threads | --memory-limit | --mask | --prompt | --tokens | --batch | --rows | --row | --system | --max-tokens)
        return
        ;;
    esac
    if [[ $word == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$(_nibble_options "$command") --help" -- "$word")
    elif [ "$COMP_CWORD" -eq 2 ] && { [ "$command" = synth ] || [ "$command" = plan ]; }; then
        mapfile -t COMPREPLY < <(compgen -W "$shapes" -- "$word")
    elif [ "$COMP_CWORD" -eq 2 ] && [ "$command" = bench ]; then
        mapfile -t COMPREPLY < <(compgen -W serve -- "$word"; compgen -f -- "$word")
    elif [ "$command" != chat ]; then
        mapfile -t COMPREPLY < <(compgen -f -- "$word")
    fi
}
complete -o filenames -F _nibble nibble
