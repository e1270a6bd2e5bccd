# Completion of pikod(8) for fish.
set -l commands status explain healthcheck
set -l first "not __fish_seen_subcommand_from $commands"
complete -c pikod -f
complete -c pikod -n $first -a status -d 'show what a node knows'
complete -c pikod -n $first -a explain -d 'say what an error code means'
complete -c pikod -n $first -a healthcheck -d 'ask if the node works'
complete -c pikod -n $first -l check-config -d 'check the settings and exit'
complete -c pikod -n $first -l config -r -F -d 'read the settings from a file'
complete -c pikod -n $first -l dump-config -d 'print the settings in effect and exit'
complete -c pikod -n $first -l reload -x -a '(__fish_complete_pids)' -d 'ask a running process to reload'
complete -c pikod -n $first -l version -d 'print the version and exit'
complete -c pikod -l help -d 'print help'
complete -c pikod -n '__fish_seen_subcommand_from status' -a 'nodes endpoints sessions routes'
complete -c pikod -n '__fish_seen_subcommand_from status' -l json -d 'print the answer of the node as it is'
complete -c pikod -n '__fish_seen_subcommand_from healthcheck' -l ready -d 'ask whether it takes traffic'
complete -c pikod -n '__fish_seen_subcommand_from status healthcheck' -l admin -x -d 'URL of the admin listener'
complete -c pikod -n '__fish_seen_subcommand_from status healthcheck' -l token-file -r -F -d 'file with the token to present'
