# Completion of piko-agent(8) for fish.
complete -c piko-agent -f
complete -c piko-agent -l check-config -d 'check the settings and exit'
complete -c piko-agent -l config -r -F -d 'read the settings from a file'
complete -c piko-agent -l dump-config -d 'print the settings in effect and exit'
complete -c piko-agent -l reload -x -a '(__fish_complete_pids)' -d 'ask a running process to reload'
complete -c piko-agent -l token-file -r -F -d 'file with the token to present'
complete -c piko-agent -l url -x -a 'http://localhost:8001' -d 'URL to connect to'
complete -c piko-agent -l version -d 'print the version and exit'
complete -c piko-agent -l help -d 'print help'
complete -c piko-agent -n '__fish_is_first_arg' -a http -d 'offer an endpoint for HTTP'
complete -c piko-agent -n '__fish_seen_subcommand_from diagnose' -l json -d 'print JSON'
complete -c piko-agent -n '__fish_is_first_arg' -a diagnose -d 'say what keeps the agent from its cluster'
complete -c piko-agent -n '__fish_is_first_arg' -a tcp -d 'offer an endpoint for TCP'
